# The image network of the published OPUS models: ResNet-50 and a feature pyramid of four levels.
img_backbone = dict(
    type="mmdet.ResNet",
    depth=50,
    num_stages=4,
    out_indices=(0, 1, 2, 3),
    frozen_stages=1,
    norm_cfg=dict(type="BN", requires_grad=True),
    norm_eval=True,
    style="pytorch",
    with_cp=True,
    # The `backbone.` part of the nuImages Cascade Mask R-CNN checkpoint, from
    # https://download.openmmlab.com/mmdetection3d/v0.1.0_models/nuimages_semseg/cascade_mask_rcnn_r50_fpn_coco-20e_20e_nuim/
    init_cfg=dict(
        type="Pretrained",
        prefix="backbone.",
        checkpoint="pretrain/cascade_mask_rcnn_r50_fpn_coco-20e_20e_nuim_20201009_124951-40963960.pth",
    ),
)
img_neck = dict(
    type="mmdet.FPN", in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=4
)
