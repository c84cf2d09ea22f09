# nuScenes with SurroundOcc labels: 0.5 m voxels in the lidar frame, 16 classes, no visibility
# masks; images and history as with Occ3D, classes as with OpenOccupancy.
_base_ = "./nuscenes_occupancy.py"

pc_range = [-50.0, -50.0, -5.0, 50.0, 50.0, 3.0]  # metres, lidar frame
voxel_size = [0.5, 0.5, 0.5]

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
val_evaluator = [dict(type="OccupancyMetric", mask="valid", prefix="surroundocc")]
