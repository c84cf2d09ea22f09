# The base of the comparisons of recipes (docs/recipes.md), on 80 scenes for training and 20 for
# validation that neither the pretraining nor the demo has.
_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/toy_pretrain.py",
    "../_base_/models/opusv2_nano.py",
    "../_base_/models/resnet18_nano_pretrained.py",
    "../_base_/schedules/adamw_toy_pretrain.py",
]

data_root = "data/toy_recipes"
max_epochs = 4
