_base_ = "./opusv2-plus-t_r50_704x256_8f_nusc-occ3d_50e.py"

model = dict(
    pts_bbox_head=dict(
        num_query=2400, num_seen_queries=1200, decoder=dict(num_refines=[2, 4, 8, 16, 32], num_points=2)
    )
)
