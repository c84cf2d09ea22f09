_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/toy_occ3d.py",
    "../_base_/models/opusv1_nano.py",
    "../_base_/schedules/adamw_toy.py",
]

# Without a step that learns which voxels are free, points have to become exact: thrice V2's time.
max_epochs = 30
model = dict(
    pts_bbox_head=dict(
        pc_range={{_base_.pc_range}},
        voxel_size={{_base_.voxel_size}},
        empty_label={{_base_.empty_label}},
        num_frames={{_base_.num_frames}},
        loss_pts=dict(rare_classes={{_base_.rare_classes}}),
        loss_cls=dict(class_weights={{_base_.class_weights}}),
    )
)
