# AdamW with linear warm-up and cosine decay, 100 epochs, as published with OPUS
# (arXiv 2409.09350, Sec. 4.1).

# The entry points read these two: the batch size is the total and is divided by the number of
# processes; what ends with the training below follows `max_epochs` when that is changed.
batch_size = 8
max_epochs = 100

train_cfg = dict(type='ResumableEpochTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    # Half precision with a dynamic loss scale; the entry points make it a plain OptimWrapper on
    # machines without a GPU.
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(
            img_backbone=dict(lr_mult=0.1),
            sampling_offset=dict(lr_mult=0.1))),
    clip_grad=dict(max_norm=35, norm_type=2))

# The published rates: the warm-up reaches the full rate at iteration 500, and the cosine steps at the
# start of every epoch. `convert_to_iter_based=True` on the second lets it step every iteration.
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end=501),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-3, by_epoch=True, begin=0, end=max_epochs,
         T_max=max_epochs),
]
