_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/nuscenes_occupancy_lidar.py",
    "../_base_/models/opusv2-fusion_r50.py",
    "../_base_/schedules/adamw_100e.py",
]

load_from = "pretrain/fusion_pretrain_model.pth"  # scripts/gen_fusion_pretrain_model.py
max_epochs = 50

model = dict(
    pts_voxel_layer=dict(voxel_size=[0.064, 0.064, 0.2]),  # 1600 x 1600 x 40 in this range too
    pts_bbox_head=dict(
        pc_range={{_base_.pc_range}},
        voxel_size={{_base_.voxel_size}},
        empty_label={{_base_.empty_label}},
        num_frames={{_base_.num_frames}},
        num_query=600,
        decoder=dict(num_refines=[8, 16, 32, 64, 128], num_points=4),
        num_classes=16,
        loss_cls=dict(class_weights=[5, 10, 5, 5, 10, 10, 5, 10, 5, 5, 1, 5, 1, 1, 2, 1]),
    ),
)
