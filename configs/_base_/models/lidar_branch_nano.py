# The LiDAR branch of the toy configurations: coarse cells (320 x 320 x 20 in a range of 80 m x 80 m x
# 6.4 m), a narrow encoder with three stages.
_base_ = "./lidar_branch.py"

pts_voxel_layer = dict(voxel_size=[0.25, 0.25, 0.32])
pts_middle_encoder = dict(
    sparse_shape=[21, 320, 320],
    base_channels=8,
    output_channels=32,
    encoder_channels=((8, 16), (16, 32), (32, 32)),
    encoder_paddings=((0, 1), (0, 1), (0, 0)),
)
pts_backbone = dict(in_channels=64, out_channels=[32, 64], layer_nums=[1, 1])
pts_neck = dict(in_channels=[32, 64], out_channels=[32, 32])
