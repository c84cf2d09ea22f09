"""The model to export, with its weights and metadata.

Dimension letters: T frames (current first), N cameras, H, W size of the given images, n LiDAR
points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import Tensor

from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.datasets.wrappers import leaf_configs, with_optional_labels
from models.detectors import OPUS
from models.errors import UserError
from scripts.export.graphs import LidarVoxels, Voxels
from scripts.prediction.history import CAMERA_RATE_HZ
from scripts.prediction.model import predict_items, unread_dataset
from scripts.runtime.atomic_write import write_atomically
from scripts.runtime.building import named_config_keys
from scripts.runtime.checkpoint import CheckpointInfo, load_weights
from scripts.runtime.config import load_config
from scripts.runtime.environment import git_commit
from scripts.runtime.errors import ConfigError


@dataclass(frozen=True)
class Frame:
    """Inputs of the exported functions for one sample.

    Attributes:
        images: uint8 `[T*N, 3, H, W]`, BGR.
        occ2img: `[T*N, 4, 4]`, metres of the occ frame to pixels.
        lidar: LiDAR inputs, if the model has a LiDAR branch.
    """

    images: Tensor
    occ2img: Tensor
    lidar: LidarVoxels | None


@dataclass(frozen=True)
class Source:
    """A model to be exported.

    Attributes:
        detector: The model, in evaluation mode, on the CPU.
        image_hw: Height and width in pixels of the input images.
        class_names: Names of the labels 0, 1, ...
        cameras: Names in the order of the images; empty if the config has none.
        config: Name of the config.
        checkpoint: The loaded checkpoint.
        cfg: The config; None for a model that was built without one.
        frame_interval_s: Seconds between the frames of a prediction; None if the config has no
            camera data set.
    """

    detector: OPUS
    image_hw: tuple[int, int]
    class_names: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    config: str = ""
    checkpoint: CheckpointInfo | None = None
    cfg: Config | None = None
    frame_interval_s: float | None = None

    @property
    def head(self) -> Any:
        """Return the model's head."""
        return self.detector.pts_bbox_head

    def facts(self) -> dict[str, Any]:
        """Return the metadata of an exported file."""
        head, preprocessor = self.head, self.detector.data_preprocessor
        checkpoint = self.checkpoint
        return dict(
            config=self.config,
            checkpoint_sha256=None if checkpoint is None else checkpoint.sha256,
            commit=git_commit(),
            torch=torch.__version__,
            class_names=list(self.class_names),
            cameras=list(self.cameras),
            num_frames=head.num_frames,
            frame_interval_s=self.frame_interval_s,
            num_cams=head.num_cams,
            image_hw=list(self.image_hw),
            pc_range=list(head.grid_range),
            voxel_size=[round(float(edge), 6) for edge in head.voxel_size],
            grid_shape=list(head.grid_shape),
            score_threshold=head.score_thr,
            normalisation=dict(
                done_inside=True,
                to_rgb=preprocessor.bgr_to_rgb,
                mean=[round(float(value), 6) for value in preprocessor.mean.flatten()],
                std=[round(float(value), 6) for value in preprocessor.std.flatten()],
                padded_to_multiple_of=preprocessor.pad_size_divisor,
            ),
        )


def load_source(
    config: str, options: Mapping[str, Any], weights: str, image_hw: tuple[int, int] | None = None
) -> Source:
    """Build the model of a config with the weights of a checkpoint.

    Args:
        config: Config file.
        options: Values of `--cfg-options`.
        weights: Checkpoint file.
        image_hw: Height and width of the images; None for those of the config's test data.

    Raises:
        ConfigError: The config has no such model, or has no size of the images.
        CheckpointError: The weights cannot be read or are another model's.
    """
    cfg = load_config(config, options)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    with named_config_keys(cfg):
        detector = MODELS.build(cfg.model)
    if not isinstance(detector, OPUS):
        raise ConfigError(f"{config} has a model of type {cfg.model.type}: only OPUS is exported")
    _check_head(detector)
    checkpoint = load_weights(detector, weights)
    (dataset, *_) = leaf_configs(_test_dataset(cfg)) or [{}]
    size = image_hw or _image_size(dataset)
    if size is None:
        raise ConfigError(f"{config} has no final_hw in its test pipeline: give --image-size H W")
    kind = DATASETS.get(str(dataset.get("type")))
    names = dataset.get("class_names") or getattr(kind, "default_classes", None) or ()
    interval_s = None
    if isinstance(kind, type) and issubclass(kind, OccupancyDataset):
        interval_s = unread_dataset(cfg).test_interval / CAMERA_RATE_HZ
    return Source(
        detector.eval(),
        size,
        class_names=tuple(names),
        cameras=tuple(dataset.get("cameras") or ()),
        config=Path(config).name,
        checkpoint=checkpoint,
        cfg=cfg,
        frame_interval_s=interval_s,
    )


def _check_head(detector: OPUS) -> None:
    """Raise an error if queries come from a memory."""
    if detector.pts_bbox_head.memory is not None:
        raise ConfigError(
            "the model has model.pts_bbox_head.memory, which exported files do not compute: export "
            "a model that was trained without it"
        )


def _test_dataset(cfg: Config) -> Mapping[str, Any]:
    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader") or {}
    return loader.get("dataset") or {}


def _image_size(dataset: Mapping[str, Any]) -> tuple[int, int] | None:
    for step in dataset.get("pipeline") or []:
        if step.get("final_hw"):
            height, width = step["final_hw"]
            return int(height), int(width)
    return None


def random_item(source: Source, seed: int = 0, num_points: int = 20_000) -> dict[str, Any]:
    """Return a sample of random images of a ring of cameras, in the format of a data set."""
    head = source.head
    rng = torch.Generator().manual_seed(seed)
    number = head.num_frames * head.num_cams
    images = torch.randint(0, 256, (number, 3, *source.image_hw), generator=rng).to(torch.uint8)
    paths = [f"seed{seed}_image{index}" for index in range(number)]
    sample = BaseDataElement(metainfo=dict(img_paths=paths, ida_mat=np.eye(4)))
    sample.ego2img = _ring_of_cameras(head.num_frames, head.num_cams, source.image_hw)
    sample.ego2occ = torch.eye(4)
    inputs = dict(img=images)
    if source.detector.has_lidar:
        low, high = torch.tensor(head.grid_range).view(2, 3)
        points = torch.rand(num_points, 5, generator=rng)
        points[:, :3] = low + points[:, :3] * (high - low)
        points[:, 4] = 0.05 * (torch.arange(num_points) >= num_points // 2)
        inputs["points"] = points
    return dict(inputs=inputs, data_samples=sample)


def _ring_of_cameras(num_frames: int, num_cams: int, hw: tuple[int, int]) -> Tensor:
    """Return ego2img `[T*N, 4, 4]` of cameras that face outwards; older frames are farther back."""
    focal = 0.6 * hw[1]
    intrinsic = torch.tensor([[focal, 0, hw[1] / 2], [0, focal, hw[0] / 2], [0, 0, 1]])
    matrices = []
    for t in range(num_frames):
        for n in range(num_cams):
            yaw = 2 * math.pi * n / num_cams
            cos, sin = math.cos(yaw), math.sin(yaw)
            # rows: right, down, forward in the ego frame (x forward, y left, z up)
            rotation = torch.tensor([[sin, -cos, 0.0], [0.0, 0.0, -1.0], [cos, sin, 0.0]])
            matrix = torch.eye(4)
            matrix[:3, :3] = intrinsic @ rotation
            matrix[:3, 3] = intrinsic @ rotation @ torch.tensor([0.5 * t, 0.0, -1.5])
            matrices.append(matrix)
    return torch.stack(matrices)


def data_items(source: Source, number: int) -> list[dict[str, Any]]:
    """Load samples spread evenly over the config's test data.

    Raises:
        UserError: The data cannot be read.
    """
    if source.cfg is None or not _test_dataset(source.cfg):
        raise ConfigError("the config has no test data")
    with named_config_keys(source.cfg):
        dataset = DATASETS.build(with_optional_labels(_test_dataset(source.cfg)))
    number = min(number, len(dataset))
    return [dataset[index * len(dataset) // number] for index in range(number)]


def check_items(source: Source, number: int) -> tuple[list[dict[str, Any]], str]:
    """Return samples for the comparison of predictions, and a description of them."""
    try:
        return data_items(source, number), "samples of the test data"
    except (UserError, OSError) as error:
        reason = " ".join(str(error).split())
        return [
            random_item(source, seed) for seed in range(number)
        ], f"samples of random images (no test data: {reason})"


@torch.no_grad()
def frame_of(source: Source, item: Mapping[str, Any]) -> Frame:
    """Return the inputs of the exported functions for a sample of a data set."""
    inputs, sample = item["inputs"], item["data_samples"]
    occ2img = sample.ego2img @ torch.linalg.inv(sample.ego2occ)
    lidar = None
    if source.detector.has_lidar:
        points = inputs["points"]
        voxels = source.detector.pts_voxel_layer([points])
        sweep = points[points[:, 4] == 0, :3]
        lidar = LidarVoxels(voxels.features, voxels.coords[:, 1:].contiguous(), sweep)
    return Frame(inputs["img"], occ2img.float(), lidar)


def write_frame(frame: Frame, num_cams: int, path: Path) -> Path:
    """Write a frame as an `.npz` file for the C++ example.

    Its images are `[T, N, 3, H, W]`; the other arrays have the names of the inputs.
    """
    arrays = dict(images=frame.images.unflatten(0, (-1, num_cams)), occ2img=frame.occ2img)
    if frame.lidar is not None:
        lidar = frame.lidar
        arrays |= dict(
            lidar_features=lidar.features, lidar_coords=lidar.coords, lidar_sweep=lidar.sweep
        )
    values = {name: np.ascontiguousarray(array.numpy()) for name, array in arrays.items()}
    return write_atomically(path, lambda temporary: np.savez(temporary, **values))


def predict(source: Source, item: Mapping[str, Any]) -> Voxels:
    """Predict a sample as `val.py` does."""
    copied = dict(item, data_samples=item["data_samples"].clone())
    (sample,) = predict_items(source.detector, [copied])
    return Voxels(sample.pred_coords, sample.pred_labels, sample.pred_scores)
