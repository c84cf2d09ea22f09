_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/nuscenes_occupancy.py",
    "../_base_/models/opusv2_plus.py",
    "../_base_/models/resnet50.py",
    "../_base_/schedules/adamw_100e.py",
]

max_epochs = 50
