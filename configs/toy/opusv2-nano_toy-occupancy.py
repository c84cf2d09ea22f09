_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/toy_occupancy.py",
    "../_base_/models/opusv2_nano.py",
    "../_base_/schedules/adamw_toy.py",
]

max_epochs = 20
model = dict(
    pts_bbox_head=dict(
        pc_range={{_base_.pc_range}},
        voxel_size={{_base_.voxel_size}},
        num_classes=16,
        empty_label={{_base_.empty_label}},
        num_frames={{_base_.num_frames}},
        loss_pts=dict(rare_classes={{_base_.rare_classes}}),
        loss_cls=dict(class_weights={{_base_.class_weights}}),
    )
)
