# OpenOccupancy with LiDAR points: the key frame and 9 sweeps, in the frame of the grid.
_base_ = './nuscenes_occupancy.py'

num_sweeps = 9  # besides the key frame

train_dataloader = dict(dataset=dict(use_lidar=True, pipeline=[
    dict(type='DrawImageAug', raw_hw={{_base_.raw_hw}}, final_hw={{_base_.final_hw}},
         resize_range={{_base_.resize_range}}),
    dict(type='LoadMultiViewImages', raw_hw={{_base_.raw_hw}}, image_mode={{_base_.image_mode}}),
    dict(type='LoadOccupancyLabels'),
    dict(type='LoadLidarSweeps', num_sweeps=num_sweeps),
    dict(type='RandomFlipBEV', bev_flip_prob=0.5),
    dict(type='FilterPoints'),
    dict(type='PackOccSample')]))
val_dataloader = dict(dataset=dict(use_lidar=True, pipeline=[
    dict(type='DrawImageAug', raw_hw={{_base_.raw_hw}}, final_hw={{_base_.final_hw}}),
    dict(type='LoadMultiViewImages', raw_hw={{_base_.raw_hw}}, image_mode={{_base_.image_mode}},
         test_cache_mb={{_base_.test_cache_mb}}),
    dict(type='LoadOccupancyLabels'),
    dict(type='LoadLidarSweeps', num_sweeps=num_sweeps),
    dict(type='FilterPoints'),
    dict(type='PackOccSample')]))
test_dataloader = val_dataloader
