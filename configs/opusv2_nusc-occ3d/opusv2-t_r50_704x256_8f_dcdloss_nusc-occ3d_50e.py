# Density-aware location loss, with half the weight of the plain one, as published.
_base_ = "./opusv2-t_r50_704x256_8f_nusc-occ3d_50e.py"

model = dict(pts_bbox_head=dict(loss_pts=dict(density_aware=True, loss_weight=0.25)))
