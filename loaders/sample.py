"""Typed view of a sample, as it passes through the transforms: one key frame with its history.

Legend: T frames (current first, then older), N cameras, F = T * N images in frame-major order
(index t * N + n), H W pixels, X Y Z voxels, n points.

Frames of reference: *ego* (vehicle, at the time of the key frame's LiDAR), *lidar* (the LiDAR, at
that time), *occ* (the frame of the voxel grid: ego for Occ3D, lidar for OpenOccupancy, mirrored by
BEV flips).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from loaders.lidar.frames import LidarFrames
from loaders.packed import PackedImages
from loaders.transforms.geometry import ImageAugParams

# Label of voxels of unknown state; losses and metrics skip them. Label files may use other values.
UNKNOWN_LABEL = 255


@dataclass
class OccSample:
    """Sample. The data set fills the first fields, the transforms the others.

    Attributes:
        sample_idx: Index within the data set; with wrappers, within the outermost one.
        sample_token: nuScenes token of the key frame.
        scene_name: Name of the scene, also the folder of its labels.
        scene_token: nuScenes token of the scene.
        lidar_token: nuScenes token of the key frame's LiDAR sweep.
        lidar_file: Name of the key frame's LiDAR file, without folders.
        cameras: Names of the N cameras.
        data_root: Folder of the data set.
        img_paths: Files of the F images.
        packed: Storage of the images, if the data root is packed.
        img_timestamps: int64 [F], microseconds.
        ego2img: float64 [F, 4, 4]; ego (of the current key frame's LiDAR) to raw pixels, later to
            augmented pixels.
        ego2occ: float64 [4, 4]; identity (Occ3D) or ego to lidar (OpenOccupancy) until a BEV flip.
        lidar2ego: float64 [4, 4], mounting of the LiDAR.
        lidar: LiDAR files, if the data set has `use_lidar`.
        pc_range: (x0, y0, z0, x1, y1, z1) of the grid, metres.
        voxel_size: (dx, dy, dz) metres.
        class_names: Semantic classes in label order; the label after the last is free.
        rng: Random generator of this sample; None in test mode.
        scene_rng: Random generator that all frames of a sequence start with; None for a frame
            outside a sequence.
        ray_origins: float64 [O, 3] metres, origins of RayIoU's rays in the occ frame before BEV
            flips, or None.
        frame_index: Index of the key frame in its scene.
        sequence_id: Number that all frames of a sampler's sequence share: the epoch, 0 in test
            mode; None for a frame outside a sequence (see ``SceneSampler``).
        timestamp: Microseconds, of the key frame's LiDAR.
        ego2global: float64 [4, 4], pose of the key frame's LiDAR time.
        replaces: Index of the sample that could not be loaded and that this one replaces.
        is_unlabelled: Whether the label file is missing and this is allowed.
        image_aug: Augmentation shared by all images of the sample.
        camera_augs: The same augmentation for each of the N cameras, which may differ in size.
        images: uint8 [F, H, W, 3] BGR, augmented.
        voxel_semantics: uint8 [X, Y, Z]; `UNKNOWN_LABEL` where the state is not known.
        mask_camera: bool [X, Y, Z], voxels that a camera sees.
        mask_lidar: bool [X, Y, Z], voxels that the LiDAR sees.
        mask_valid: bool [X, Y, Z], voxels whose label is not noise.
        points: float32 [n, 5] (x, y, z in metres of the occ frame, intensity, time lag in seconds:
            0 for the key frame, positive for older sweeps).
    """

    sample_idx: int
    sample_token: str
    scene_name: str
    scene_token: str
    lidar_token: str
    data_root: str
    img_paths: list[str]
    img_timestamps: npt.NDArray[np.int64]
    ego2img: npt.NDArray[np.float64]
    pc_range: tuple[float, ...]
    voxel_size: tuple[float, ...]
    class_names: tuple[str, ...]
    lidar_file: str = ""
    cameras: tuple[str, ...] = ()
    rng: np.random.Generator | None = None
    scene_rng: np.random.Generator | None = None
    ray_origins: npt.NDArray[np.float64] | None = None
    frame_index: int = 0
    sequence_id: int | None = None
    timestamp: int = 0
    ego2global: npt.NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    ego2occ: npt.NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    lidar2ego: npt.NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    lidar: LidarFrames | None = None
    packed: PackedImages | None = None
    replaces: int | None = None
    is_unlabelled: bool = False
    image_aug: ImageAugParams | None = None
    camera_augs: tuple[ImageAugParams, ...] = ()
    images: npt.NDArray[np.uint8] | None = None
    voxel_semantics: npt.NDArray[np.uint8] | None = None
    mask_camera: npt.NDArray[np.bool_] | None = None
    mask_lidar: npt.NDArray[np.bool_] | None = None
    mask_valid: npt.NDArray[np.bool_] | None = None
    points: npt.NDArray[np.float32] | None = None

    @property
    def bev_rng(self) -> np.random.Generator | None:
        """Random generator of BEV augmentations: all frames of a sequence have the same.

        A model with a memory of the previous frame would otherwise see the scene mirrored between
        two frames.
        """
        return self.rng if self.scene_rng is None else self.scene_rng

    @property
    def lidar2occ(self) -> npt.NDArray[np.float64]:
        """Float64 [4, 4], the key frame's lidar frame to the occ frame, BEV flips included."""
        return self.ego2occ @ self.lidar2ego

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Number of voxels (X, Y, Z)."""
        low, high = np.array(self.pc_range[:3]), np.array(self.pc_range[3:])
        counts = np.round((high - low) / np.array(self.voxel_size)).astype(int)
        return int(counts[0]), int(counts[1]), int(counts[2])
