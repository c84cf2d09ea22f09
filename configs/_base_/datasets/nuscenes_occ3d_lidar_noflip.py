# Occ3D with LiDAR points and without BEV flips: OPUS-Fusion is published so.
_base_ = './nuscenes_occ3d_lidar.py'

train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='DrawImageAug', raw_hw={{_base_.raw_hw}}, final_hw={{_base_.final_hw}},
         resize_range={{_base_.resize_range}}),
    dict(type='LoadMultiViewImages', raw_hw={{_base_.raw_hw}}, image_mode={{_base_.image_mode}}),
    dict(type='LoadOcc3DLabels'),
    dict(type='LoadLidarSweeps', num_sweeps={{_base_.num_sweeps}}),
    dict(type='FilterPoints'),
    dict(type='PackOccSample')]))
