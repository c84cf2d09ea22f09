# nuScenes with Occ3D labels: six cameras, 8 frames, 704 x 256 pixels, as in the published OPUS models.
# The values at the top are settings: they are passed to every part with an argument of that name,
# unless the part sets its own value. docs/settings.md lists all settings.

# ---- data
data_root = "data/nuscenes"
version = "v1.0-trainval"  # also part of the info files' names
cameras = ["CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT"]
num_frames = 8  # including the current one

# ---- labels and grid
class_names = [
    "others", "barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle",
    "pedestrian", "traffic_cone", "trailer", "truck", "driveable_surface", "other_flat",
    "sidewalk", "terrain", "manmade", "vegetation"]
class_weights = [10, 5, 10, 5, 5, 10, 10, 5, 10, 5, 5, 1, 5, 1, 1, 2, 1]
rare_classes = [0, 2, 5, 8]
pc_range = [-40.0, -40.0, -1.0, 40.0, 40.0, 5.4]  # metres, ego frame
voxel_size = [0.4, 0.4, 0.4]

# ---- images and augmentation
raw_hw = (900, 1600)  # pixels on disk
final_hw = (256, 704)  # pixels into the network
resize_range = (0.38, 0.55)  # relative to the raw size, in training
image_mode = "exact"  # 'fast': linear resize of a reduced decode; see docs/loading.md
test_cache_mb = 64  # per process; consecutive samples share most frames
bev_flip_prob = 0.5  # probability of flipping the scene along x, and along y

# ---- LiDAR, loaded if use_lidar is set
num_sweeps = 9  # besides the key frame

# ---- loading
num_workers = 4
persistent_workers = True
pin_memory = True

pipeline = [
    dict(type="DrawImageAug"),
    dict(type="LoadMultiViewImages"),
    dict(type="LoadOcc3DLabels"),
    dict(type="LoadLidarSweeps"),
    dict(type="RandomFlipBEV"),
    dict(type="RandomTurnScaleBEV"),
    dict(type="FilterPoints"),
    dict(type="PackOccSample")]
train_dataloader = dict(
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(type="NuScenesOcc3DDataset", split="train"))
val_dataloader = dict(
    batch_size=1,
    drop_last=False,
    sampler=dict(type="EpochSampler", shuffle=False, consecutive=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="NuScenesOcc3DDataset", split="val", test_mode=True, with_ray_origins=True))
val_evaluator = [dict(type="OccupancyMetric", mask="camera"), dict(type="RayIoUMetric")]
