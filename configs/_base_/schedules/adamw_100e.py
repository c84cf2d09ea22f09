# AdamW with linear warm-up and cosine decay, 100 epochs, as published with OPUS
# (arXiv 2409.09350, Sec. 4.1).

batch_size = 8  # in total, divided among the processes
max_epochs = 100

# By default epochs, with one evaluation at the end; train_cfg=dict(by_epoch=False, max_iters=...)
# counts iterations. Schedulers without `end` last until the end of the training.
train_cfg = dict()
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    # Half precision with a dynamic loss scale; on machines without a GPU, the entry points replace
    # it by a plain OptimWrapper.
    type="AmpOptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(
            img_backbone=dict(lr_mult=0.1),
            sampling_offset=dict(lr_mult=0.1))),
    clip_grad=dict(max_norm=35, norm_type=2))

# The published rates: the warm-up reaches the full rate at iteration 500, and the cosine steps at the
# start of every epoch. With `convert_to_iter_based=True`, the second steps every iteration.
param_scheduler = [
    dict(type="LinearLR", start_factor=1 / 3, by_epoch=False, begin=0, end=501),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-3, begin=0),
]
