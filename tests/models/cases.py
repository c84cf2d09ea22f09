"""Small heads, detectors and batches, for the tests of the models."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmengine.structures import BaseDataElement

from models.heads import CameraGeometry

T, N, HW = 2, 6, (64, 96)
PC_RANGE = [-8.0, -6.0, -1.0, 8.0, 6.0, 2.2]  # 20 x 15 x 4 voxels: three different axes
VOXEL_SIZE = [0.8, 0.8, 0.8]
GRID = (20, 15, 4)
NUM_CLASSES = 5

HEAD: dict[str, Any] = dict(
    type="CPDHead",
    pc_range=PC_RANGE,
    voxel_size=VOXEL_SIZE,
    num_classes=NUM_CLASSES,
    empty_label=NUM_CLASSES,
    embed_dims=32,
    num_query=10,
    num_frames=T,
    num_cams=N,
    num_levels=3,
    point_channels=4,
    decoder=dict(type="OPUSDecoder", num_refines=[2, 4], num_points=2, ffn_dims=48, dropout=0.0),
    densifier=dict(type="CPDDensifier", pfn_channels=[8, 8]),
    loss_pts=dict(type="ChamferLoss"),
    loss_cls=dict(type="SigmoidFocalLoss", loss_weight=2.0, class_weights=[1, 2, 3, 4, 5]),
)

_POINT_DECODER = HEAD["decoder"] | dict(sampling_pattern="scaled_offset", prior_probability=0.01)
POINT_HEAD: dict[str, Any] = {
    key: value for key, value in HEAD.items() if key not in ("point_channels", "densifier")
} | dict(type="PointHead", decoder=_POINT_DECODER)

DETECTOR: dict[str, Any] = dict(
    type="OPUS",
    data_preprocessor=dict(type="OPUSDataPreprocessor"),
    img_backbone=dict(
        type="mmdet.ResNet", depth=18, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1),
        out_indices=(0, 1, 2), frozen_stages=1, norm_eval=True,
    ),
    img_neck=dict(type="mmdet.FPN", in_channels=[64, 128, 256], out_channels=32, num_outs=3),
    pts_bbox_head=HEAD,
)  # fmt: skip

LIDAR_BRANCH: dict[str, Any] = dict(
    pts_voxel_layer=dict(
        type="MeanVoxelizer", voxel_size=[0.2, 0.2, 0.4], max_points=10, max_voxels=(900, 1200)
    ),
    pts_middle_encoder=dict(
        type="mmdet3d.SparseEncoder", in_channels=5, sparse_shape=[9, 60, 80], base_channels=4,
        output_channels=8, block_type="basicblock", encoder_channels=((4, 4, 8), (8, 8)),
        encoder_paddings=((0, 0, (1, 1, 1)), (0, 0)),
    ),
    pts_backbone=dict(
        type="mmdet3d.SECOND", in_channels=16, out_channels=[8, 16], layer_nums=[1, 1],
        layer_strides=[1, 2],
    ),
    pts_neck=dict(
        type="mmdet3d.SECONDFPN", in_channels=[8, 16], out_channels=[8, 8],
        upsample_strides=[1, 2],
    ),
)  # fmt: skip


def with_lidar(head: dict[str, Any]) -> dict[str, Any]:
    """Return the changes that give `DETECTOR` this head and a LiDAR branch."""
    decoder = head["decoder"] | dict(mixed_points=None)
    return LIDAR_BRANCH | dict(pts_bbox_head=head | dict(use_lidar=True, decoder=decoder))


def make_points(seed: int, number: int = 400) -> torch.Tensor:
    """Return LiDAR points [n, 5] of two sweeps, the key frame's first; some lie outside."""
    rng = torch.Generator().manual_seed(seed)
    points = torch.rand(number, 5, generator=rng)
    low, high = torch.tensor(PC_RANGE).view(2, 3)
    points[:, :3] = low + points[:, :3] * (high - low) * 1.02
    points[:, 4] = 0.05 * (torch.arange(number) >= number // 2)
    return points


def merge(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a deep copy of a config with some keys replaced."""
    return copy.deepcopy(config) | changes


def camera_matrices(num_frames: int = T) -> torch.Tensor:
    """Return ego2img [T*N, 4, 4] of a ring of cameras that look outwards; older frames lag."""
    focal, centre = 60.0, torch.tensor([HW[1] / 2, HW[0] / 2])
    matrices = []
    for t in range(num_frames):
        for n in range(N):
            yaw = torch.tensor(2 * torch.pi * n / N)
            cos, sin = float(yaw.cos()), float(yaw.sin())
            # rows: right, down, forward in the ego frame (x forward, y left, z up)
            rotation = torch.tensor([[sin, -cos, 0.0], [0.0, 0.0, -1.0], [cos, sin, 0.0]])
            matrix = torch.eye(4)
            intrinsic = torch.eye(3)
            intrinsic[0, 0] = intrinsic[1, 1] = focal
            intrinsic[:2, 2] = centre
            matrix[:3, :3] = intrinsic @ rotation
            matrix[:3, 3] = intrinsic @ rotation @ torch.tensor([0.3 * t, 0.0, -1.5])
            matrices.append(matrix)
    return torch.stack(matrices)


def make_geometry(batch: int, dtype: torch.dtype = torch.float32) -> CameraGeometry:
    """Return the cameras of a batch for `HEAD`."""
    return CameraGeometry(
        camera_matrices().to(dtype).repeat(batch, 1, 1, 1),
        torch.eye(4, dtype=dtype).repeat(batch, 1, 1),
        HW,
    )


def make_sample(seed: int, occupied: float = 0.2, num_frames: int = T) -> BaseDataElement:
    """Return a sample with geometry and random labels."""
    rng = torch.Generator().manual_seed(seed)
    semantics = torch.randint(0, NUM_CLASSES, GRID, generator=rng)
    semantics[torch.rand(GRID, generator=rng) >= occupied] = NUM_CLASSES
    paths = [f"sample{seed}_frame{t}_cam{n}.jpg" for t in range(num_frames) for n in range(N)]
    sample = BaseDataElement(metainfo=dict(img_paths=paths, ida_mat=torch.eye(4).numpy()))
    sample.ego2img = camera_matrices(num_frames)
    sample.ego2occ = torch.eye(4)
    sample.voxel_semantics = semantics.to(torch.uint8)
    sample.mask_camera = torch.rand(GRID, generator=rng) < 0.7
    return sample


def make_batch(*seeds: int, num_frames: int = T, lidar: bool = False) -> dict[str, Any]:
    """Return a collated batch of random images, LiDAR points if wanted, and samples."""
    images = [
        torch.randint(
            0, 256, (num_frames * N, 3, *HW), generator=torch.Generator().manual_seed(seed)
        ).to(torch.uint8)
        for seed in seeds
    ]
    samples = [make_sample(seed, num_frames=num_frames) for seed in seeds]
    inputs = dict(img=images)
    if lidar:
        inputs["points"] = [make_points(seed) for seed in seeds]
    return dict(inputs=inputs, data_samples=samples)


def make_feats(batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Return three levels of random feature maps for `HEAD`."""
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, T * N, 32, HW[0] // s, HW[1] // s, generator=rng).to(dtype)
        for s in (4, 8, 16)
    ]
