# `make toy-train`: image network and first-hit head from `make toy-pretrain`; decoder and head start
# from scratch.
_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/toy_occ3d.py",
    "../_base_/models/opusv2_plus_nano.py",
    "../_base_/models/resnet18_nano_pretrained.py",
    "../_base_/schedules/adamw_toy.py",
]

bev_flip_prob = 0.5
max_epochs = 40
