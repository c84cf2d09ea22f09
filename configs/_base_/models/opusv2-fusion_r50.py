# OPUS-V2 with a LiDAR branch: queries start at LiDAR points, and the decoder samples the branch's map.
_base_ = ["./opusv2_r50.py", "./lidar_branch.py"]

model = dict(
    pts_voxel_layer={{_base_.pts_voxel_layer}},
    pts_middle_encoder={{_base_.pts_middle_encoder}},
    pts_backbone={{_base_.pts_backbone}},
    pts_neck={{_base_.pts_neck}},
    pts_bbox_head=dict(use_lidar=True, decoder=dict(mixed_points=None)),
)
