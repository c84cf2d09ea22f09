_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/nuscenes_occ3d_noflip.py",
    "../_base_/models/opusv1_r50.py",
    "../_base_/schedules/adamw_100e.py",
]

model = dict(
    pts_bbox_head=dict(
        pc_range={{_base_.pc_range}},
        voxel_size={{_base_.voxel_size}},
        empty_label={{_base_.empty_label}},
        num_frames={{_base_.num_frames}},
        num_query=600,
        decoder=dict(num_refines=[1, 4, 16, 32, 64, 128], num_points=4),
    )
)
