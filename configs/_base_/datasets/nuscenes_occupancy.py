# nuScenes with OpenOccupancy labels: 0.2 m voxels in the lidar frame, 16 classes, no visibility
# masks; images and history as with Occ3D.
_base_ = "./nuscenes_occ3d.py"

class_names = [
    "barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian",
    "traffic_cone", "trailer", "truck", "driveable_surface", "other_flat", "sidewalk", "terrain",
    "manmade", "vegetation"]
class_weights = [5, 10, 5, 5, 10, 10, 5, 10, 5, 5, 1, 5, 1, 1, 2, 1]
pc_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]  # metres, lidar frame
voxel_size = [0.2, 0.2, 0.2]

pipeline = [
    dict(type="DrawImageAug"),
    dict(type="LoadMultiViewImages"),
    dict(type="LoadOccupancyLabels"),
    dict(type="LoadLidarSweeps"),
    dict(type="RandomFlipBEV"),
    dict(type="RandomTurnScaleBEV"),
    dict(type="FilterPoints"),
    dict(type="PackOccSample")]
train_dataloader = dict(dataset=dict(type="NuScenesOccupancyDataset"))
val_dataloader = dict(dataset=dict(type="NuScenesOccupancyDataset", with_ray_origins=False))
val_evaluator = [dict(type="OccupancyMetric", mask="valid", prefix="openocc")]
