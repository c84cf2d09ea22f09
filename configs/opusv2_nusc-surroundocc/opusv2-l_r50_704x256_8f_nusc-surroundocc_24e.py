_base_ = "./opusv2-t_r50_704x256_8f_nusc-surroundocc_24e.py"

model = dict(
    pts_bbox_head=dict(num_query=4800, decoder=dict(num_refines=[1, 2, 4, 8, 16], num_points=2))
)
