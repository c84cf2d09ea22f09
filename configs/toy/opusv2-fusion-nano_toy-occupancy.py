_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/toy_occupancy_lidar.py",
    "../_base_/models/opusv2-fusion_nano.py",
    "../_base_/schedules/adamw_toy.py",
]

model = dict(
    pts_voxel_layer=dict(voxel_size=[0.1, 0.1, 0.2]),  # 320 x 320 x 20 in this range too
    pts_bbox_head=dict(
        pc_range={{_base_.pc_range}},
        voxel_size={{_base_.voxel_size}},
        num_classes=16,
        empty_label={{_base_.empty_label}},
        num_frames={{_base_.num_frames}},
        loss_pts=dict(rare_classes={{_base_.rare_classes}}),
        loss_cls=dict(class_weights={{_base_.class_weights}}),
    ),
)
