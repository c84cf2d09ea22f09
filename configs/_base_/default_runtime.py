# Settings of every run: registration, hooks, logs, processes, randomness.

default_scope = "mmengine"
custom_imports = dict(
    imports=["models.register", "loaders.register", "scripts.runtime.register"],
    allow_failed_imports=False)

default_hooks = dict(
    runtime_info=dict(type="RuntimeInfoHook"),
    timer=dict(type="IterTimerHook"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    logger=dict(type="LoggerHook", interval=50, interval_exp_name=10**9),
    param_scheduler=dict(type="ParamSchedulerHook"),
    batch_norm=dict(type="BatchNormSyncHook"),
    # every epoch; in a training that counts iterations, at every evaluation
    checkpoint=dict(type="CheckpointHook", max_keep_ckpts=2, save_last=True),
    host_memory=dict(type="HostMemoryHook", interval=10),
    # Pictures of validation samples in TensorBoard; named by its module, which is only imported here.
    validation_sheet=dict(
        type="scripts.visualization.training_hook.ValidationSheetHook", num_samples=2))

log_processor = dict(type="LogProcessor", window_size=50)
log_level = "INFO"
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="Visualizer", name="visualizer")

env_cfg = dict(
    cudnn_benchmark=True,  # all images have the same size
    # Workers are forked, because each spawned one would import torch and the models.
    # OpenCV's own threads would compete with them.
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"))  # gloo without GPUs; see scripts/runtime/launch.py
randomness = dict(seed=0)
sync_bn = None  # 'torch': batch norm over the joint batch of several GPUs

load_from = None
# Renaming of `load_from` keys: detectors of mmdetection use these names for the image network, e.g.
# the nuImages Cascade Mask R-CNN from which the published OPUS models start.
revise_keys = [(r"^backbone\.", "img_backbone.")]
resume = False
