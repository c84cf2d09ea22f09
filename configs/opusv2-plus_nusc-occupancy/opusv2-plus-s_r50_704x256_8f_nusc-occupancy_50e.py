_base_ = "./opusv2-plus-t_r50_704x256_8f_nusc-occupancy_50e.py"

model = dict(
    pts_bbox_head=dict(
        num_query=1200, num_seen_queries=600, decoder=dict(num_refines=[4, 8, 16, 32, 64], num_points=2)
    )
)
