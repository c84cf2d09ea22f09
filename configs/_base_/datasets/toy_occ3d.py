# The toy data set of scripts/make_toy_nuscenes.py: nuScenes' format, 400 x 225 pixels, on two
# cores. Images are decoded once and kept in memory, and resized with a linear filter. No BEV flips: a
# training of minutes has no time to learn every scene in four orientations.

data_root = 'data/toy_nuscenes'
version = 'v1.0-mini'
class_names = [
    'others', 'barrier', 'bicycle', 'bus', 'car', 'construction_vehicle', 'motorcycle',
    'pedestrian', 'traffic_cone', 'trailer', 'truck', 'driveable_surface', 'other_flat',
    'sidewalk', 'terrain', 'manmade', 'vegetation']
empty_label = 17
rare_classes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 16]  # all that stands above the ground
class_weights = [3, 3, 3, 2, 2, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2]
pc_range = [-40.0, -40.0, -1.0, 40.0, 40.0, 5.4]  # metres, ego frame
voxel_size = [0.4, 0.4, 0.4]
num_frames = 1  # the current one alone: minutes do not suffice to learn from more
raw_hw = (225, 400)  # pixels on disk
final_hw = (96, 256)  # pixels into the network
resize_range = (0.58, 0.72)  # of the raw size, training (evaluation: 0.64)
image_cache_mb = 1024  # each process; images that do not fit are decoded again
label_cache_mb = 256

train_pipeline = [
    dict(type='DrawImageAug', raw_hw=raw_hw, final_hw=final_hw, resize_range=resize_range),
    dict(type='LoadMultiViewImages', raw_hw=raw_hw, image_mode='fast', image_cache_mb=image_cache_mb),
    dict(type='LoadOcc3DLabels', label_cache_mb=label_cache_mb),
    dict(type='PackOccSample')]
# for longer trainings: with flips of the whole scene
flip_pipeline = [
    *train_pipeline[:-1], dict(type='RandomFlipBEV', bev_flip_prob=0.5), train_pipeline[-1]]
test_pipeline = [
    dict(type='DrawImageAug', raw_hw=raw_hw, final_hw=final_hw),
    dict(type='LoadMultiViewImages', raw_hw=raw_hw, image_mode='fast'),
    dict(type='LoadOcc3DLabels'),
    dict(type='PackOccSample')]

train_dataloader = dict(
    batch_size=1,  # set from the config's total `batch_size`
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='EpochSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='NuScenesOcc3DDataset',
        data_root=data_root,
        ann_file='nuscenes_infos_train_mini_sweep.pkl',
        version=version,
        num_frames=num_frames,
        pc_range=pc_range,
        voxel_size=voxel_size,
        class_names=class_names,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    drop_last=False,
    sampler=dict(type='EpochSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='NuScenesOcc3DDataset',
        data_root=data_root,
        ann_file='nuscenes_infos_val_mini_sweep.pkl',
        version=version,
        num_frames=num_frames,
        pc_range=pc_range,
        voxel_size=voxel_size,
        class_names=class_names,
        test_mode=True,
        with_ray_origins=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = [dict(type='OccupancyMetric', mask='camera'), dict(type='RayIoUMetric')]
test_evaluator = val_evaluator
