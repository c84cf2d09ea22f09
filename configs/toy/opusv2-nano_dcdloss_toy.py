# Density-aware location loss.
_base_ = "./opusv2-nano_toy.py"

model = dict(pts_bbox_head=dict(loss_pts=dict(density_aware=True)))
