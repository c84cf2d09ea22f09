# The small OPUS-V2 with the parts that won on the toy data (docs/recipes.md).
_base_ = "./opusv2_nano.py"

model = dict(
    pts_bbox_head=dict(
        score_thr=0.25,  # chosen on validation scenes, docs/recipes.md
        num_seen_queries=300,
        num_seen_points=1200,
        seen_level=1,
        decoder=dict(position_code="where_used"),
    )
)
