# Training from scratch in minutes on two CPU cores: one sample per step, high rate, short warm-up.
_base_ = "./adamw_100e.py"

batch_size = 1
max_epochs = 10

optim_wrapper = dict(
    type="OptimWrapper",
    # averages over 50 iterations only, because the first gradients are far larger than the rest
    optimizer=dict(lr=3e-3, betas=(0.9, 0.98)),
    paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=1.0))))
# There are few, short epochs: the cosine steps every iteration.
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-2, begin=0, convert_to_iter_based=True),
]
