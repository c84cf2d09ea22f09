# The nano model on other scenes than the demo's (`make toy-pretrain`): 320 for training and 80 for
# validation, in varied lighting.
_base_ = ["./opusv2-nano_toy.py"]

data_root = "data/toy_pretrain"
version = "v1.0-trainval"
bev_flip_prob = 0.5
max_epochs = 30
