# Voxels of 0.4 m, to be evaluated on finer and coarser ones as well.
_base_ = "./opusv2-nano_toy-occupancy.py"

voxel_size = [0.4, 0.4, 0.4]
