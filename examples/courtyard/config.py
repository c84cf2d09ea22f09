"""A small OPUS-V2 on the courtyard, with its own rig, grid and classes."""

_base_ = [
    "../../configs/_base_/default_runtime.py",
    "../../configs/_base_/models/opusv2.py",
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

# Settings are passed to every part with an argument of that name.
data_root = "data/courtyard"
version = "courtyard"
cameras = ["FRONT", "LEFT", "BACK", "RIGHT"]
class_names = ["ground", "wall", "crate", "person"]
class_weights = [1, 1, 3, 3]
rare_classes = [3]
pc_range = [-12.0, -9.0, -0.6, 12.0, 9.0, 2.4]
voxel_size = [0.6, 0.6, 0.6]
num_frames = 2
train_interval = (1, 2)
test_interval = 1
raw_hw = (64, 96)
final_hw = (64, 96)
resize_range = (1.0, 1.2)
image_mode = "fast"
image_cache_mb = 64
bev_flip_prob = 0.5
batch_size = 2
max_epochs = 4
pipeline = [
    dict(type="DrawImageAug"),
    dict(type="LoadMultiViewImages"),
    dict(type="LoadCourtyardLabels"),
    dict(type="RandomFlipBEV"),
    dict(type="PackOccSample"),
]

train_dataloader = dict(
    num_workers=0,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(type="CourtyardDataset", ann_file="infos_train.pkl"),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="EpochSampler", shuffle=False, consecutive=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="CourtyardDataset",
        ann_file="infos_val.pkl",
        test_mode=True,
        with_ray_origins=True,
    ),
)
val_evaluator = [
    dict(type="OccupancyMetric", mask=None, prefix="courtyard"),
    dict(type="RayIoUMetric"),
]

img_backbone = dict(
    type="mmdet.ResNet",
    depth=18,
    base_channels=16,
    num_stages=3,
    strides=(1, 2, 2),
    dilations=(1, 1, 1),
    out_indices=(0, 1, 2),
    frozen_stages=-1,
    norm_eval=False,
)
img_neck = dict(type="mmdet.FPN", in_channels=[16, 32, 64], out_channels=32, num_outs=3)
model = dict(
    pts_bbox_head=dict(
        num_levels=3,
        embed_dims=32,
        num_query=100,
        decoder=dict(num_refines=[4, 8], num_points=2, ffn_dims=64, dropout=0.0),
        densifier=dict(pfn_channels=[32, 32], prior_probability=0.1),
    ),
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(lr=2e-3),
    paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=1.0))),
)
param_scheduler = [dict(type="CosineAnnealingLR")]
