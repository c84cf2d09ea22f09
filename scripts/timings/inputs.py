"""Synthetic input with a config's sizes: a drive with a ring of cameras and a LiDAR.

Dimension letters: T frames of a sample (current first), N cameras, H, W image size, n points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from scripts.runtime.errors import ConfigError

STEP_M = 5.0  # distance between frames: half a second at 36 km/h
CAMERA_HEIGHT_M = 1.5
FOCAL = 0.8  # focal length divided by image width, as for nuScenes' cameras
# A LiDAR of 32 beams at 20 Hz.
BEAMS, AZIMUTHS = 32, 1084
ELEVATION_DEG = (-30.0, 10.0)
LIDAR_HEIGHT_M = 1.8
SWEEP_S = 0.05


@dataclass(frozen=True)
class InputSizes:
    """Sizes of a model's input.

    Attributes:
        num_frames: T.
        num_cams: N.
        img_hw: H, W of the images returned by the data set.
        num_sweeps: LiDAR sweeps, the current one included; 0 without LiDAR.
    """

    num_frames: int
    num_cams: int
    img_hw: tuple[int, int]
    num_sweeps: int = 0

    @classmethod
    def of(cls, cfg: Config) -> InputSizes:
        """Read the sizes from a resolved config.

        Raises:
            ConfigError: The config does not specify the size of the images.
        """
        head = cfg.model.pts_bbox_head
        img_hw = _value(cfg.get("test_dataloader") or {}, "final_hw")
        if img_hw is None:
            raise ConfigError(
                "the config does not specify the network's input size: set final_hw=(H, W)"
            )
        sweeps = 0
        if head.get("use_lidar"):
            sweeps = 1 + int(_value(cfg.get("test_dataloader"), "num_sweeps") or 0)
        return cls(int(head.num_frames), int(head.num_cams), tuple(img_hw), sweeps)


def _value(part: Any, name: str) -> Any:
    """Return the first value of a key in nested dicts and lists; None if there is none."""
    if isinstance(part, Mapping):
        if part.get(name) is not None:
            return part[name]
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for item in part:
            found = _value(item, name)
            if found is not None:
                return found
    return None


class SyntheticDrive:
    """Samples of a drive; each has one new frame and the T-1 frames before it.

    The first frame is repeated for frames before it, as at the start of a scene. Images are noise
    from a pool of `pool` frames, so that the cost of a frame does not depend on the length of the
    drive.

    Args:
        sizes: Sizes of a sample.
        seed: Random seed of images and points.
        pool: Number of different images per camera.
    """

    def __init__(self, sizes: InputSizes, seed: int = 0, pool: int = 10) -> None:
        self.sizes = sizes
        generator = torch.Generator().manual_seed(seed)
        shape = (pool, sizes.num_cams, *sizes.img_hw, 3)
        self._images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        self._points = [
            lidar_sweeps(sizes.num_sweeps, generator) for _ in range(2 if sizes.num_sweeps else 0)
        ]

    def batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Yield endless batches of consecutive samples, collated like the data loader's."""
        start = 0
        while True:
            yield self.batch(range(start, start + batch_size))
            start += batch_size

    def batch(self, indices: range) -> dict[str, Any]:
        """Return a batch of the samples at the given frames of the drive."""
        inputs: dict[str, Any] = dict(img=[self._stack(index) for index in indices])
        if self._points:
            inputs["points"] = [self._points[index % len(self._points)] for index in indices]
        return dict(inputs=inputs, data_samples=[self._element(index) for index in indices])

    def _frames(self, index: int) -> list[int]:
        return [max(0, index - t) for t in range(self.sizes.num_frames)]

    def _stack(self, index: int) -> Tensor:
        """Return uint8 `[T*N, 3, H, W]` in channels-last layout, like the loader."""
        images = self._images[[frame % len(self._images) for frame in self._frames(index)]]
        return images.flatten(0, 1).permute(0, 3, 1, 2)

    def _element(self, index: int) -> BaseDataElement:
        frames = self._frames(index)
        paths = [f"frame{frame}/cam{n}.jpg" for frame in frames for n in range(self.sizes.num_cams)]
        sample = BaseDataElement(metainfo=dict(img_paths=paths, ida_mat=torch.eye(4).numpy()))
        lags = [index - frame for frame in frames]
        sample.ego2img = camera_ring(lags, self.sizes.num_cams, self.sizes.img_hw)
        sample.ego2occ = torch.eye(4)
        return sample


def camera_ring(lags: list[int], num_cams: int, img_hw: tuple[int, int]) -> Tensor:
    """Return ego2img `[T*N, 4, 4]` of cameras looking outwards from a car driving along x.

    Args:
        lags: Age of each of the T frames, in frames.
        num_cams: N.
        img_hw: H, W in pixels.
    """
    height, width = img_hw
    focal = FOCAL * width
    intrinsic = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    matrices = []
    for lag in lags:
        for n in range(num_cams):
            sin, cos = (f(2 * math.pi * n / num_cams) for f in (math.sin, math.cos))
            # rows: right, down, forward in the ego frame (x forward, y left, z up)
            rotation = torch.tensor([[sin, -cos, 0.0], [0.0, 0.0, -1.0], [cos, sin, 0.0]])
            matrix = torch.eye(4)
            matrix[:3, :3] = intrinsic @ rotation
            place = torch.tensor([STEP_M * lag, 0.0, -CAMERA_HEIGHT_M])
            matrix[:3, 3] = intrinsic @ rotation @ place
            matrices.append(matrix)
    return torch.stack(matrices)


def lidar_sweeps(number: int, generator: torch.Generator) -> Tensor:
    """Return points `[n, 5]` of sweeps over flat ground between walls, the current one first.

    x, y, z in metres of the ego frame, intensity, time lag in seconds.
    """
    low, high = ELEVATION_DEG
    elevation = torch.deg2rad(torch.linspace(low, high, BEAMS))[:, None]
    azimuth = torch.linspace(0, 2 * math.pi, AZIMUTHS)[None, :]
    ground = LIDAR_HEIGHT_M / (-elevation.sin()).clamp(min=1e-3)
    wall = (20 + 12 * (3 * azimuth).sin() + 6 * (17 * azimuth).cos()).clamp(min=4)
    distance = torch.minimum(ground, wall / elevation.cos())
    sweeps = []
    for k in range(number):
        r = distance * (1 + 0.01 * torch.randn(distance.shape, generator=generator))
        x = r * elevation.cos() * azimuth.cos() - 0.1 * STEP_M * k
        y, z = r * elevation.cos() * azimuth.sin(), r * elevation.sin() + LIDAR_HEIGHT_M
        intensity = torch.rand(r.shape, generator=generator)
        sweeps.append(torch.stack([x, y, z, intensity, torch.full_like(r, SWEEP_S * k)], -1))
    return torch.cat([sweep.flatten(0, 1) for sweep in sweeps])


def vary_zero_weights(model: nn.Module) -> None:
    """Randomise weights that are initialised to zero, so that queries differ."""
    for name, parameter in model.named_parameters():
        if name.endswith(("parameter_generator.weight", "sampling_offset.weight")):
            nn.init.normal_(parameter, std=0.02)
