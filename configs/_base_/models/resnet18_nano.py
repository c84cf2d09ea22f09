# A narrow image network for the toy configurations, trained from scratch: a model trains in minutes
# on two CPU cores.
img_backbone = dict(
    type="mmdet.ResNet",
    depth=18,
    base_channels=32,
    num_stages=3,
    strides=(1, 2, 2),
    dilations=(1, 1, 1),
    out_indices=(0, 1, 2),
    frozen_stages=-1,
    norm_cfg=dict(type="BN", requires_grad=True),
    norm_eval=False,
    style="pytorch",
    with_cp=False,
)
img_neck = dict(type="mmdet.FPN", in_channels=[32, 64, 128], out_channels=64, num_outs=3)
# Auxiliary task that replaces pretraining: the first occupied voxel on each image ray.
img_aux_head = dict(type="FirstHitHead")
