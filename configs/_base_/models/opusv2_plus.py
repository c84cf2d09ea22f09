# OPUS-V2 with the parts that won on procedural data, not measured on nuScenes: docs/recipes.md.
_base_ = "./opusv2.py"

img_aux_head = dict(type="FirstHitHead")
model = dict(
    pts_bbox_head=dict(
        num_seen_queries=300,
        num_seen_points=2400,
        seen_level=2,
        decoder=dict(position_code="where_used"),
    )
)
