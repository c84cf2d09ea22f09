# nuScenes with Occ3D labels: six cameras, 8 frames, 704 x 256 pixels, as OPUS is published.
# The published models are trained and scored with exactly these values.

data_root = 'data/nuscenes'
version = 'v1.0-trainval'
class_names = [
    'others', 'barrier', 'bicycle', 'bus', 'car', 'construction_vehicle', 'motorcycle',
    'pedestrian', 'traffic_cone', 'trailer', 'truck', 'driveable_surface', 'other_flat',
    'sidewalk', 'terrain', 'manmade', 'vegetation']
empty_label = 17
pc_range = [-40.0, -40.0, -1.0, 40.0, 40.0, 5.4]  # metres, ego frame
voxel_size = [0.4, 0.4, 0.4]
num_frames = 8  # the current one included
raw_hw = (900, 1600)  # pixels on disk
final_hw = (256, 704)  # pixels into the network
resize_range = (0.38, 0.55)  # of the raw size, training
image_mode = 'exact'  # 'fast': linear resize of a reduced decode, 4 times faster
test_cache_mb = 64  # each process; keeps the frames that the next samples of a scene need again

train_pipeline = [
    dict(type='DrawImageAug', raw_hw=raw_hw, final_hw=final_hw, resize_range=resize_range),
    dict(type='LoadMultiViewImages', raw_hw=raw_hw, image_mode=image_mode),
    dict(type='LoadOcc3DLabels'),
    dict(type='RandomFlipBEV', bev_flip_prob=0.5),
    dict(type='PackOccSample')]
test_pipeline = [
    dict(type='DrawImageAug', raw_hw=raw_hw, final_hw=final_hw),
    dict(type='LoadMultiViewImages', raw_hw=raw_hw, image_mode=image_mode,
         test_cache_mb=test_cache_mb),
    dict(type='LoadOcc3DLabels'),
    dict(type='PackOccSample')]

train_dataloader = dict(
    batch_size=1,  # set from the config's total `batch_size`
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='EpochSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='NuScenesOcc3DDataset',
        data_root=data_root,
        ann_file='nuscenes_infos_train_sweep.pkl',
        version=version,
        num_frames=num_frames,
        pc_range=pc_range,
        voxel_size=voxel_size,
        class_names=class_names,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    drop_last=False,
    sampler=dict(type='EpochSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='NuScenesOcc3DDataset',
        data_root=data_root,
        ann_file='nuscenes_infos_val_sweep.pkl',
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
