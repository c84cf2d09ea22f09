# Other procedural scenes than the demo's, in varied weather and lighting (`make toy-pretrain`): 240 for
# training and 60 for validation.
_base_ = "./toy_occ3d.py"

data_root = "data/toy_pretrain"
version = "v1.0-trainval"
bev_flip_prob = 0.5
