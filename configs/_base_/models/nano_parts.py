# What the toy configurations put in the place of the published sizes, so that two CPU cores train a
# model in minutes: a thin image network trained from scratch.
nano_backbone = dict(
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
)
nano_neck = dict(in_channels=[32, 64, 128], out_channels=64, num_outs=3)
