"""A small OPUS-V2 on the courtyard: another rig, grid and class list than nuScenes."""

_base_ = [
    "../../configs/_base_/default_runtime.py",
    "../../configs/_base_/models/opusv2_r50.py",
    "../../configs/_base_/schedules/adamw_100e.py",
]
custom_imports = dict(
    imports=[
        "models.register",
        "loaders.register",
        "scripts.runtime.register",
        "examples.courtyard.dataset",
    ],
    allow_failed_imports=False,
)

data_root = "data/courtyard"
cameras = ["FRONT", "LEFT", "BACK", "RIGHT"]
class_names = ["ground", "wall", "crate", "person"]
pc_range = [-12.0, -9.0, -0.6, 12.0, 9.0, 2.4]
voxel_size = [0.6, 0.6, 0.6]
num_frames = 2
raw_hw = final_hw = (64, 96)
dataset = dict(
    type="CourtyardDataset",
    data_root=data_root,
    version="courtyard",
    cameras=cameras,
    class_names=class_names,
    pc_range=pc_range,
    voxel_size=voxel_size,
    num_frames=num_frames,
    train_interval=(1, 2),
    test_interval=1,
)
train_pipeline = [
    dict(type="DrawImageAug", raw_hw=raw_hw, final_hw=final_hw, resize_range=(1.0, 1.2)),
    dict(type="LoadMultiViewImages", raw_hw=raw_hw, image_mode="fast", image_cache_mb=64),
    dict(type="LoadCourtyardLabels"),
    dict(type="RandomFlipBEV"),
    dict(type="PackOccSample"),
]
test_pipeline = [
    dict(type="DrawImageAug", raw_hw=raw_hw, final_hw=final_hw),
    dict(type="LoadMultiViewImages", raw_hw=raw_hw, image_mode="fast"),
    dict(type="LoadCourtyardLabels"),
    dict(type="PackOccSample"),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(ann_file="infos_train.pkl", pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="EpochSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        ann_file="infos_val.pkl",
        pipeline=test_pipeline,
        test_mode=True,
        with_ray_origins=True,
        **dataset,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type="OccupancyMetric", mask=None, prefix="courtyard"),
    dict(type="RayIoUMetric"),
]
test_evaluator = val_evaluator

batch_size = 2
max_epochs = 4
model = dict(
    img_backbone=dict(
        depth=18,
        base_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        frozen_stages=-1,
        norm_eval=False,
        with_cp=False,
        init_cfg=None,
    ),
    img_neck=dict(in_channels=[16, 32, 64], out_channels=32, num_outs=3),
    pts_bbox_head=dict(
        pc_range=pc_range,
        voxel_size=voxel_size,
        num_classes=len(class_names),
        empty_label=len(class_names),
        num_cams=len(cameras),
        num_frames=num_frames,
        num_levels=3,
        embed_dims=32,
        num_query=100,
        decoder=dict(num_refines=[4, 8], num_points=2, ffn_dims=64, dropout=0.0),
        densifier=dict(pfn_channels=[32, 32], prior_probability=0.1),
        loss_pts=dict(rare_classes=[3]),
        loss_cls=dict(class_weights=[1, 1, 3, 3]),
    ),
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(lr=2e-3),
    paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=1.0))),
)
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=4, T_max=4)]
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
