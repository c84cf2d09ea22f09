_base_ = "./opusv2-t_r50_704x256_8f_nusc-surroundocc_24e.py"

model = dict(
    pts_bbox_head=dict(num_query=1200, decoder=dict(num_refines=[4, 8, 16, 32, 64], num_points=2))
)
