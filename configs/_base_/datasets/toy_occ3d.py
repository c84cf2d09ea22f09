# The toy data set of scripts/make_toy_nuscenes.py: nuScenes' format, 400 x 225 pixels.
# Images are decoded once, kept in memory, and resized with a linear filter. BEV flips are off: a
# training of minutes is too short to learn every scene in four orientations.
_base_ = "./nuscenes_occ3d.py"

data_root = "data/toy_nuscenes"
version = "v1.0-mini"
num_frames = 1  # only the current one: a training of minutes is too short to learn from more
rare_classes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 16]  # all classes above the ground
class_weights = [3, 3, 3, 2, 2, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2]
raw_hw = (225, 400)
final_hw = (96, 256)
resize_range = (0.58, 0.72)  # evaluation: 0.64
image_mode = "fast"
image_cache_mb = 1024  # per process; images that do not fit are decoded again
label_cache_mb = 256
lidar_cache_mb = 64
test_cache_mb = 0
bev_flip_prob = 0.0
num_sweeps = 4  # the toy LiDAR has 4 sweeps per second
num_workers = 1
pin_memory = False

val_dataloader = dict(persistent_workers=False)
