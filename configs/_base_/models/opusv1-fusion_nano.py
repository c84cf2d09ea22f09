# OPUS-V1-Fusion so small that two CPU cores train it in minutes, from scratch.
_base_ = ["./opusv1_nano.py", "./nano_lidar_branch.py"]

model = dict(
    pts_voxel_layer={{_base_.pts_voxel_layer}},
    pts_middle_encoder={{_base_.pts_middle_encoder}},
    pts_backbone={{_base_.pts_backbone}},
    pts_neck={{_base_.pts_neck}},
    pts_bbox_head=dict(use_lidar=True, score_thr=0.35, decoder=dict(mixed_points=None)),
)
