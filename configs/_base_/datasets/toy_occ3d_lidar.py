# The toy data with Occ3D labels and LiDAR points.
_base_ = './toy_occ3d.py'

num_sweeps = 4  # besides the key frame; the toy LiDAR makes 4 sweeps a second

train_dataloader = dict(dataset=dict(use_lidar=True, pipeline=[
    dict(type='DrawImageAug', raw_hw={{_base_.raw_hw}}, final_hw={{_base_.final_hw}},
         resize_range={{_base_.resize_range}}),
    dict(type='LoadMultiViewImages', raw_hw={{_base_.raw_hw}}, image_mode='fast',
         image_cache_mb={{_base_.image_cache_mb}}),
    dict(type='LoadOcc3DLabels', label_cache_mb={{_base_.label_cache_mb}}),
    dict(type='LoadLidarSweeps', num_sweeps=num_sweeps, lidar_cache_mb=64),
    dict(type='FilterPoints'),
    dict(type='PackOccSample')]))
val_dataloader = dict(dataset=dict(use_lidar=True, pipeline=[
    dict(type='DrawImageAug', raw_hw={{_base_.raw_hw}}, final_hw={{_base_.final_hw}}),
    dict(type='LoadMultiViewImages', raw_hw={{_base_.raw_hw}}, image_mode='fast'),
    dict(type='LoadOcc3DLabels'),
    dict(type='LoadLidarSweeps', num_sweeps=num_sweeps),
    dict(type='FilterPoints'),
    dict(type='PackOccSample')]))
test_dataloader = val_dataloader
