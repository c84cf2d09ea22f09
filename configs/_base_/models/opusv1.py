# OPUS-V1 (arXiv 2409.09350): every point has class logits; voxels are averaged and closed.
_base_ = "./opus.py"

model = dict(
    pts_bbox_head=dict(
        type="PointHead",
        num_query=600,
        score_thr=0.5,
        max_spread_m=3.0,
        padding=True,
        decoder=dict(
            num_refines=[1, 4, 16, 32, 64, 128],
            num_points=4,
            sampling_pattern="scaled_offset",
            prior_probability=0.01,
        ),
    )
)
