# OPUS-V1 so small that two CPU cores train it in minutes, from scratch. Without a step that fills
# the voxels between points it takes more of them.
_base_ = ["./opusv1_r50.py", "./nano_parts.py"]

model = dict(
    data_preprocessor=dict(distortion=None),
    img_backbone={{_base_.nano_backbone}},
    img_neck={{_base_.nano_neck}},
    # In place of pretrained weights: what the rays of the image meet first.
    img_aux_head=dict(type="FirstHitHead"),
    pts_bbox_head=dict(
        embed_dims=64,
        num_levels=3,
        num_query=600,
        score_thr=0.45,
        max_spread_m=3.0,
        # Points start metres away from their query instead of having to learn it.
        decoder=dict(
            num_refines=[1, 32],
            num_points=4,
            ffn_dims=128,
            dropout=0.0,
            refine_scale_m=3.0,
            prior_probability=0.1,
        ),
    ),
)
