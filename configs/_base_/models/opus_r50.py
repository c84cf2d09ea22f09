# What all OPUS models with ResNet-50 share, with the values of Occ3D-nuScenes. The head's type and
# what goes with it is added by opusv1_r50.py and opusv2_r50.py. What a variant usually changes:
# num_query, num_refines (points per query after each decoder layer; its length is the number of
# layers) and num_points. The head passes grid, frames, cameras, levels and channels on.
model = dict(
    type="OPUS",
    data_preprocessor=dict(
        type="OPUSDataPreprocessor", distortion=dict(type="PhotometricDistortion")
    ),
    img_backbone=dict(
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
    ),
    img_neck=dict(
        type="mmdet.FPN", in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=4
    ),
    grid_mask=None,
    stop_prev_grad=None,
    streaming=False,
    pts_bbox_head=dict(
        pc_range=[-40.0, -40.0, -1.0, 40.0, 40.0, 5.4],
        voxel_size=[0.4, 0.4, 0.4],
        num_classes=17,
        empty_label=17,
        embed_dims=256,
        num_frames=8,
        num_cams=6,
        num_levels=4,
        decoder=dict(
            type="OPUSDecoder",
            num_groups=4,
            mixed_points=32,
            num_heads=8,
            ffn_dims=512,
            dropout=0.1,
            level_pairing="published",
        ),
        loss_pts=dict(
            type="ChamferLoss",
            beta=0.2,
            loss_weight=0.5,
            density_aware=False,
            far_weight=5.0,
            rare_classes=[0, 2, 5, 8],
            rare_weight=10.0,
        ),
        loss_cls=dict(
            type="SigmoidFocalLoss",
            gamma=2.0,
            alpha=0.25,
            loss_weight=2.0,
            class_weights=[10, 5, 10, 5, 5, 10, 10, 5, 10, 5, 5, 1, 5, 1, 1, 2, 1],
        ),
    ),
)
