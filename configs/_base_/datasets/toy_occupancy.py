# The toy data with OpenOccupancy labels: 0.2 m voxels in the lidar frame, near the vehicle.
_base_ = "./toy_occ3d.py"

class_names = [
    "barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian",
    "traffic_cone", "trailer", "truck", "driveable_surface", "other_flat", "sidewalk", "terrain",
    "manmade", "vegetation"]
rare_classes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 15]  # all classes above the ground
class_weights = [3, 3, 2, 2, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 2]
pc_range = [-16.0, -16.0, -2.4, 16.0, 16.0, 1.6]  # metres, lidar frame; the ground is at -1.84
voxel_size = [0.2, 0.2, 0.2]  # 160 x 160 x 20; labels also serve multiples of 0.2 m

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
val_dataloader = dict(dataset=dict(type="NuScenesOccupancyDataset"))
val_evaluator = [
    dict(type="OccupancyMetric", mask="valid", prefix="openocc"), dict(type="RayIoUMetric")]
