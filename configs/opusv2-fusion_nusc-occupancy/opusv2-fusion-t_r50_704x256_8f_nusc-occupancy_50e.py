_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/nuscenes_occupancy.py",
    "../_base_/models/opusv2.py",
    "../_base_/models/resnet50.py",
    "../_base_/models/lidar_branch.py",
    "../_base_/schedules/adamw_100e.py",
]

max_epochs = 50
pts_voxel_layer = dict(voxel_size=[0.064, 0.064, 0.2])  # also 1600 x 1600 x 40 in this range
load_from = "pretrain/fusion_pretrain_model.pth"  # scripts/gen_fusion_pretrain_model.py
