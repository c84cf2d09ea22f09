_base_ = "./opusv2-plus-t_r50_704x256_8f_nusc-occ3d_50e.py"

model = dict(
    pts_bbox_head=dict(
        num_query=4800, num_seen_queries=2400, decoder=dict(num_refines=[1, 2, 4, 8, 16], num_points=2)
    )
)
