# OPUS-V2 small enough to learn the toy data on two CPU cores in minutes: the classes and the
# decoder of the published models, with a thin backbone trained from scratch and few queries.
_base_ = [
    "../_base_/default_runtime.py",
    "../_base_/datasets/toy_occ3d.py",
    "../_base_/models/opusv2_r50.py",
    "../_base_/schedules/adamw_100e.py",
]

# No BEV flips: a training of minutes has no time to learn every scene in four orientations.
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(
                type="DrawImageAug",
                raw_hw={{_base_.raw_hw}},
                final_hw={{_base_.final_hw}},
                resize_range={{_base_.resize_range}},
            ),
            dict(
                type="LoadMultiViewImages",
                raw_hw={{_base_.raw_hw}},
                mode="fast",
                cache_mb={{_base_.image_cache_mb}},
            ),
            dict(type="LoadOcc3DLabels", cache_mb={{_base_.label_cache_mb}}),
            dict(type="PackOccSample"),
        ]
    )
)
batch_size = 1
max_epochs = 14

num_frames = 1  # the current one alone: half the images of a step
train_dataloader["dataset"].update(num_frames=num_frames)
val_dataloader = dict(dataset=dict(num_frames=num_frames))
test_dataloader = val_dataloader

model = dict(
    data_preprocessor=dict(distortion=None),
    # In place of pretrained weights: what the rays of the image meet first.
    img_aux_head=dict(type="FirstHitHead"),
    img_backbone=dict(
        depth=18,
        base_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        frozen_stages=-1,
        norm_eval=False,
        with_cp=False,
        init_cfg=None,
    ),
    img_neck=dict(in_channels=[32, 64, 128], out_channels=64, num_outs=3),
    pts_bbox_head=dict(
        pc_range={{_base_.pc_range}},
        voxel_size={{_base_.voxel_size}},
        embed_dims=64,
        score_thr=0.2,
        num_query=600,
        num_frames=num_frames,
        num_levels=3,
        # Points start metres away from their query instead of having to learn it.
        decoder=dict(
            num_refines=[1, 10],
            num_points=4,
            ffn_dims=128,
            dropout=0.0,
            refine_scale_m=3.0,
        ),
        densifier=dict(pfn_channels=[64, 24], prior_probability=0.1, bn_momentum=0.1),
        # all that stands above the ground
        loss_pts=dict(rare_classes=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 16]),
        loss_cls=dict(class_weights=[3, 3, 3, 2, 2, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2]),
    ),
)

optim_wrapper = dict(
    type="OptimWrapper",
    # a memory of 50 iterations: the gradients of the first ones are far larger than the rest
    optimizer=dict(lr=3e-3, betas=(0.9, 0.98)),
    paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=1.0))),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(
        type="CosineAnnealingLR",
        eta_min_ratio=1e-2,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
