# The nano model on hundreds of other scenes than the demo's (`make toy-pretrain`): 320 to train on,
# 80 more to validate on, in all kinds of light.
_base_ = ["./opusv2-nano_toy.py"]

data_root = 'data/toy_pretrain'
version = 'v1.0-trainval'
bev_flip_prob = 0.5
max_epochs = 30
