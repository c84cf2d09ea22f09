# The base of the comparisons of recipes (docs/recipes.md), on scenes that neither the pretraining nor
# the demo has.
_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/toy_occ3d.py",
    "../_base_/models/opusv2_nano.py",
    "../_base_/models/resnet18_nano_pretrained.py",
    "../_base_/schedules/adamw_toy.py",
]

data_root = "data/toy_recipes"
version = "v1.0-trainval"
bev_flip_prob = 0.5
max_epochs = 4

optim_wrapper = dict(type="AmpOptimWrapper", dtype="auto")
