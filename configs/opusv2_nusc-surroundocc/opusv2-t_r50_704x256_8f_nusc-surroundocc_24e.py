_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/nuscenes_surroundocc.py",
    "../_base_/models/opusv2.py",
    "../_base_/models/resnet50.py",
    "../_base_/schedules/adamw_100e.py",
]

max_epochs = 24
