# Common base of all OPUS models. Image network and LiDAR branch are separate files; grid, classes,
# frames and cameras are settings of the data set. opusv1.py and opusv2.py add the head's type and
# its settings. Variants usually change num_query, num_refines (points per query after each decoder
# layer; its length is the number of layers) and num_points.
model = dict(
    type="OPUS",
    data_preprocessor=dict(
        type="OPUSDataPreprocessor", distortion=dict(type="PhotometricDistortion")
    ),
    pts_bbox_head=dict(
        embed_dims=256,
        num_levels=4,
        decoder=dict(
            type="OPUSDecoder",
            num_groups=4,
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
            rare_weight=10.0,
        ),
        loss_cls=dict(
            type="SigmoidFocalLoss",
            gamma=2.0,
            alpha=0.25,
            loss_weight=2.0,
        ),
    ),
)
