_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/nuscenes_occupancy.py",
    "../_base_/models/opusv2_r50.py",
    "../_base_/schedules/adamw_100e.py",
]

max_epochs = 50

model = dict(
    pts_bbox_head=dict(
        pc_range={{_base_.pc_range}},
        voxel_size={{_base_.voxel_size}},
        empty_label={{_base_.empty_label}},
        num_frames={{_base_.num_frames}},
        num_query=600,
        decoder=dict(num_refines=[8, 16, 32, 64, 128], num_points=4),
        num_classes=16,
        loss_cls=dict(class_weights=[5, 10, 5, 5, 10, 10, 5, 10, 5, 5, 1, 5, 1, 1, 2, 1]),
    )
)
