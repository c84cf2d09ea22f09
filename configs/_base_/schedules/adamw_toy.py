# Minutes on two CPU cores, from scratch: one sample a step, a high learning rate, a short warm-up.
_base_ = './adamw_100e.py'

batch_size = 1
max_epochs = 10

optim_wrapper = dict(
    type='OptimWrapper',
    # a memory of 50 iterations: the gradients of the first ones are far larger than the rest
    optimizer=dict(lr=3e-3, betas=(0.9, 0.98)),
    paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=1.0))))
# Epochs are short and few: the cosine steps every iteration.
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-2, begin=0, convert_to_iter_based=True),
]
