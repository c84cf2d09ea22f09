_base_ = "./opusv2-t_r50_704x256_8f_nusc-surroundocc_24e.py"

model = dict(
    pts_bbox_head=dict(num_query=2400, decoder=dict(num_refines=[2, 4, 8, 16, 32], num_points=2))
)
