# As opusv2-nano_toy_pretrain.py, with the parts of docs/recipes.md.
_base_ = ["./opusv2-plus-nano_toy.py"]

data_root = "data/toy_pretrain"
version = "v1.0-trainval"
bev_flip_prob = 0.5
max_epochs = 16

optim_wrapper = dict(type="AmpOptimWrapper", dtype="auto")
