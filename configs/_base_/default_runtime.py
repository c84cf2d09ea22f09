# What every run shares: registration, hooks, logs, processes, randomness.

default_scope = 'mmengine'
custom_imports = dict(
    imports=['models.register', 'loaders.register', 'scripts.runtime.register'],
    allow_failed_imports=False)

default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    logger=dict(type='LoggerHook', interval=50, interval_exp_name=10**9),
    param_scheduler=dict(type='ParamSchedulerHook'),
    batch_norm=dict(type='BatchNormSyncHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2, save_last=True))
custom_hooks = [
    dict(type='HostMemoryHook', interval=10),
    dict(type='ValidationSheetHook', num_samples=2)]  # pictures in TensorBoard

log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends, name='visualizer')

env_cfg = dict(
    cudnn_benchmark=True,  # every image has one size
    # Workers are forked: spawned ones would import torch and the models once each.
    # OpenCV's own threads would compete with them.
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))  # gloo without GPUs, see scripts/runtime/launch.py
randomness = dict(seed=0)
sync_bn = None  # 'torch': batch norms of the joint batch, on several GPUs

load_from = None
# How keys of `load_from` are renamed: detectors of mmdetection call their image network so, among
# them the nuImages Cascade Mask R-CNN that OPUS is published to start from.
revise_keys = [(r'^backbone\.', 'img_backbone.')]
resume = False
