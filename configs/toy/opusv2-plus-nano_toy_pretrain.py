# As opusv2-nano_toy_pretrain.py, with the parts of docs/recipes.md.
_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/toy_pretrain.py",
    "../_base_/models/opusv2_plus_nano.py",
    "../_base_/models/resnet18_nano.py",
    "../_base_/schedules/adamw_toy_pretrain.py",
]
