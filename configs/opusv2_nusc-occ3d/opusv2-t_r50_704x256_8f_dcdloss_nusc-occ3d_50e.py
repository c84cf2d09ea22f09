# Density-aware location loss.
_base_ = "./opusv2-t_r50_704x256_8f_nusc-occ3d_50e.py"

model = dict(pts_bbox_head=dict(loss_pts=dict(density_aware=True)))
