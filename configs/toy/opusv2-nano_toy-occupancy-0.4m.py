# Voxels of 0.4 m, also for evaluation on finer and coarser voxels.
_base_ = "./opusv2-nano_toy-occupancy.py"

voxel_size = [0.4, 0.4, 0.4]
