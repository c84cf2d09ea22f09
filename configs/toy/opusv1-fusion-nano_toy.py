_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/toy_occ3d.py",
    "../_base_/models/opusv1_nano.py",
    "../_base_/models/resnet18_nano.py",
    "../_base_/models/lidar_branch_nano.py",
    "../_base_/schedules/adamw_toy.py",
]

max_epochs = 20
# The best RayIoU on two training scenes: configs/ablations/thresholds_v1_fusion.yaml.
model = dict(pts_bbox_head=dict(score_thr=0.35))
