# The LiDAR branch: hard voxels, then mmdet3d's sparse encoder, backbone and neck. The range is 80 m
# in x and y; z has one sparse cell more than voxels. Queries start at LiDAR points, and the decoder
# samples the branch's feature map.
use_lidar = True  # data sets load LiDAR sweeps, the head uses them
mixed_points = None  # as many features after mixing as sampled from images and map
pts_voxel_layer = dict(
    type="MeanVoxelizer",
    voxel_size=[0.05, 0.05, 0.16],
    max_points=10,
    max_voxels=(90_000, 120_000),
)
pts_middle_encoder = dict(
    type="mmdet3d.SparseEncoder",
    in_channels=5,
    sparse_shape=[41, 1600, 1600],
    output_channels=128,
    encoder_channels=((16, 16, 32), (32, 32, 64), (64, 64, 128), (128, 128)),
    encoder_paddings=((0, 0, 1), (0, 0, 1), (0, 0, (0, 1, 1)), (0, 0)),
    block_type="basicblock",
)
pts_backbone = dict(
    type="mmdet3d.SECOND",
    in_channels=256,
    out_channels=[128, 256],
    layer_nums=[5, 5],
    layer_strides=[1, 2],
)
pts_neck = dict(
    type="mmdet3d.SECONDFPN",
    in_channels=[128, 256],
    out_channels=[256, 256],
    upsample_strides=[1, 2],
    use_conv_for_no_stride=True,
)
