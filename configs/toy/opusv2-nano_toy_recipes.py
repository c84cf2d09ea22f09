# The base of the comparisons of recipes (docs/recipes.md), on scenes that neither the pretraining nor
# the demo has.
_base_ = ["./opusv2-nano_toy_long_pretrained.py"]

data_root = "data/toy_recipes"
version = "v1.0-trainval"
max_epochs = 4

optim_wrapper = dict(type="AmpOptimWrapper", dtype="bfloat16")
