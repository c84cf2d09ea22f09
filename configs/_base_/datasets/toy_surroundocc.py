# The toy data with SurroundOcc labels: 0.5 m voxels in the lidar frame, near the vehicle.
_base_ = "./toy_occupancy.py"

pc_range = [-20.0, -20.0, -3.0, 20.0, 20.0, 3.0]  # metres, lidar frame; the ground is at -1.84
voxel_size = [0.5, 0.5, 0.5]  # 80 x 80 x 12

pipeline = [
    dict(type="DrawImageAug"),
    dict(type="LoadMultiViewImages"),
    dict(
        type="LoadOccupancyLabels",
        label_dir="surroundocc",
        label_file="{lidar_file}.npy",
        column_order="xyz",
        label_range=[-50.0, -50.0, -5.0, 50.0, 50.0, 3.0],
        label_voxel_size=[0.5, 0.5, 0.5],
        ignore_label=0),  # noise is ignored in losses and scores
    dict(type="LoadLidarSweeps"),
    dict(type="RandomFlipBEV"),
    dict(type="RandomTurnScaleBEV"),
    dict(type="FilterPoints"),
    dict(type="PackOccSample")]
train_dataloader = dict(dataset=dict(type="NuScenesSurroundOccDataset"))
val_dataloader = dict(dataset=dict(type="NuScenesSurroundOccDataset"))
val_evaluator = [
    dict(type="OccupancyMetric", mask="valid", prefix="surroundocc"), dict(type="RayIoUMetric")]
