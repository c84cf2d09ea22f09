# nuScenes with OpenOccupancy labels: 0.2 m voxels in the lidar frame, 16 classes, no visibility
# masks; images and history as with Occ3D.
_base_ = './nuscenes_occ3d.py'

class_names = [
    'barrier', 'bicycle', 'bus', 'car', 'construction_vehicle', 'motorcycle', 'pedestrian',
    'traffic_cone', 'trailer', 'truck', 'driveable_surface', 'other_flat', 'sidewalk', 'terrain',
    'manmade', 'vegetation']
empty_label = 16
pc_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]  # metres, lidar frame
voxel_size = [0.2, 0.2, 0.2]
grid = dict(
    type='NuScenesOccupancyDataset',
    pc_range=pc_range,
    voxel_size=voxel_size,
    class_names=class_names)

train_dataloader = dict(dataset=dict(**grid, pipeline=[
    dict(type='DrawImageAug', raw_hw={{_base_.raw_hw}}, final_hw={{_base_.final_hw}},
         resize_range={{_base_.resize_range}}),
    dict(type='LoadMultiViewImages', raw_hw={{_base_.raw_hw}}, image_mode={{_base_.image_mode}}),
    dict(type='LoadOccupancyLabels'),
    dict(type='RandomFlipBEV', bev_flip_prob=0.5),
    dict(type='PackOccSample')]))
val_dataloader = dict(dataset=dict(**grid, with_ray_origins=False, pipeline=[
    dict(type='DrawImageAug', raw_hw={{_base_.raw_hw}}, final_hw={{_base_.final_hw}}),
    dict(type='LoadMultiViewImages', raw_hw={{_base_.raw_hw}}, image_mode={{_base_.image_mode}},
         test_cache_mb={{_base_.test_cache_mb}}),
    dict(type='LoadOccupancyLabels'),
    dict(type='PackOccSample')]))
test_dataloader = val_dataloader

val_evaluator = [dict(type='OccupancyMetric', mask='valid', prefix='openocc')]
test_evaluator = val_evaluator
