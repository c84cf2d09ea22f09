_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/toy_occ3d.py",
    "../_base_/models/opusv2_plus_nano.py",
    "../_base_/models/resnet18_nano.py",
    "../_base_/schedules/adamw_toy.py",
]
