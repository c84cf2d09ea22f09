"""Occ3D labels and flips of the bird's-eye view. Legend: X Y Z voxels along the axes."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.registry import TRANSFORMS

from loaders.errors import (
    BadDataError,
    LoaderConfigError,
    MissingDataError,
    UnknownClassError,
    WrongShapeError,
)
from loaders.lidar.points import move_points
from loaders.sample import OccSample
from loaders.transforms.cache import ArrayCache
from loaders.transforms.geometry import flip_bev
from loaders.transforms.regrid import LabelWindow, label_window, pool_any, regrid_sparse

_KEYS = ("semantics", "mask_camera", "mask_lidar")
# What BEV flips must turn over together.
_GRIDS = ("voxel_semantics", "mask_camera", "mask_lidar", "mask_valid")


def loads_labels(transform_type: str) -> bool:
    """Whether a transform loads labels: the name of its class has the word Labels."""
    return "Labels" in transform_type


def read_occ3d_labels(
    path: str, grid_shape: tuple[int, int, int], num_classes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Reads an Occ3D ``labels.npz``.

    Args:
        path: File with ``semantics``, ``mask_camera`` and ``mask_lidar``.
        grid_shape: (X, Y, Z) that the arrays must have, or whole multiples of it (finer labels).
        num_classes: Number of classes, free included; labels must be below it.

    Returns:
        Semantics uint8, camera mask bool and LiDAR mask bool, of one shape.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is broken, lacks a key, or has another shape or unknown labels.
    """
    restore = "extract the Occ3D labels again"
    arrays: list[npt.NDArray[Any]] = []
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in _KEYS:
                if key not in file.files:
                    raise BadDataError(f"label file {path} has no '{key}': {restore}")
                arrays.append(file[key])
    except FileNotFoundError:
        raise MissingDataError(
            f"label file {path} does not exist: extract the Occ3D labels to gts/ of the data "
            "root, or write the info file anew if it belongs to other data"
        ) from None
    except BadDataError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise BadDataError(f"label file {path} is broken: {restore}") from error
    for key, array in zip(_KEYS, arrays, strict=True):
        # Masks must be like the semantics, and these of the wanted grid or finer.
        fits = array.shape == arrays[0].shape and _factors(array.shape, grid_shape) is not None
        if not fits:
            raise WrongShapeError(
                f"label file {path}: '{key}' has shape {array.shape}, but pc_range and voxel_size "
                f"of the config make {grid_shape}: {restore}, or change the config"
            )
    semantics = arrays[0]
    if semantics.dtype.kind not in "ui":
        raise BadDataError(
            f"label file {path}: 'semantics' is {semantics.dtype}, not integer: {restore}"
        )
    low, high = int(semantics.min()), int(semantics.max())
    if low < 0 or high >= num_classes:
        raise UnknownClassError(
            f"label file {path} has class {low if low < 0 else high}, but class_names of the "
            f"config allow 0 to {num_classes - 1}: {restore}, or correct class_names"
        )
    camera, lidar = (mask.astype(bool, copy=False) for mask in arrays[1:])
    return semantics.astype(np.uint8, copy=False), camera, lidar


def _factors(
    shape: tuple[int, ...], grid_shape: tuple[int, int, int]
) -> tuple[int, int, int] | None:
    """Returns how many voxels of a file make one of the grid, None if no whole number does."""
    if len(shape) != 3 or any(a < b or a % b for a, b in zip(shape, grid_shape, strict=True)):
        return None
    x, y, z = (a // b for a, b in zip(shape, grid_shape, strict=True))
    return x, y, z


@TRANSFORMS.register_module()
class LoadOcc3DLabels:
    """Loads semantics and visibility masks of a sample.

    The config's voxels may be a whole number of times as large as those of the files. Such a voxel
    bears the label of most of its occupied ones, and a mask is true where any voxel inside is.

    Args:
        label_dir: Folder within the data root; files are ``<scene_name>/<token>/labels.npz``.
        label_cache_mb: Size of the label cache of each process, MiB (1.8 MiB per Occ3D sample).
        label_range: (x0, y0, z0, x1, y1, z1) of the files' grid, metres; None means that of the
            config, which may else be a part of it.
    """

    def __init__(
        self,
        label_dir: str = "gts",
        label_cache_mb: float = 0.0,
        label_range: Sequence[float] | None = None,
    ) -> None:
        self.label_dir = label_dir
        self.label_range = None if label_range is None else tuple(map(float, label_range))
        self._cache = ArrayCache(label_cache_mb)

    def label_path(self, sample: OccSample) -> str:
        """Returns the label file of a sample."""
        return os.path.join(
            sample.data_root, self.label_dir, sample.scene_name, sample.sample_token, "labels.npz"
        )

    def __call__(self, sample: OccSample) -> OccSample:
        """Sets ``voxel_semantics``, ``mask_camera`` and ``mask_lidar``."""
        path, num_classes = self.label_path(sample), len(sample.class_names)
        grid = (sample.pc_range, sample.voxel_size)
        label_range = self.label_range or sample.pc_range

        def read() -> Sequence[npt.NDArray[Any]]:
            whole = label_window(label_range, grid[1], label_range, grid[1]).shape
            arrays = read_occ3d_labels(path, whole, num_classes + 1)
            fine = np.array(grid[1]) / (_factors(arrays[0].shape, whole) or (1, 1, 1))
            window = label_window(label_range, fine.tolist(), *grid)
            is_whole = window.shape == arrays[0].shape
            return arrays if is_whole else _regrid(*arrays, window, num_classes)

        # Copies: whoever changes a sample must not change the cache.
        sample.voxel_semantics, sample.mask_camera, sample.mask_lidar = (
            a.copy() for a in self._cache.get((path, *grid), read)
        )
        return sample


def _regrid(
    semantics: npt.NDArray[np.uint8],
    mask_camera: npt.NDArray[np.bool_],
    mask_lidar: npt.NDArray[np.bool_],
    window: LabelWindow,
    num_classes: int,
) -> Sequence[npt.NDArray[Any]]:
    """Crops and pools the arrays of a file (num_classes: semantic ones, free excluded)."""
    index = np.argwhere(semantics != num_classes)
    label = semantics[tuple(index.T)].astype(np.int64)
    grid = regrid_sparse(index, label, window, num_classes)
    return grid, pool_any(mask_camera, window), pool_any(mask_lidar, window)


@TRANSFORMS.register_module()
class RandomFlipBEV:
    """Reverses the x and/or y axis of the labels; mirrors ``ego2occ`` and LiDAR points alike.

    Does nothing in test mode. Put it after the transforms that load labels and points.

    Args:
        bev_flip_prob: Probability of reversing an axis, one for both or (x, y). With 0 for both,
            nothing is drawn from the sample's generator.
    """

    def __init__(self, bev_flip_prob: float | Sequence[float] = 0.5) -> None:
        if isinstance(bev_flip_prob, (int, float)):
            bev_flip_prob = (bev_flip_prob, bev_flip_prob)
        try:
            x, y = map(float, bev_flip_prob)
        except (TypeError, ValueError):
            x = y = math.nan
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise LoaderConfigError(
                f"RandomFlipBEV: bev_flip_prob is {bev_flip_prob}, use a number from 0 to 1, or "
                "two of them for x and y"
            )
        self.bev_flip_prob = (x, y)

    def __call__(self, sample: OccSample) -> OccSample:
        """Flips labels, masks and points, if loaded, and sets ``ego2occ``."""
        if sample.rng is None or not any(self.bev_flip_prob):
            return sample
        draw_x, draw_y = sample.rng.uniform(size=2)
        loaded = [name for name in _GRIDS if getattr(sample, name) is not None]
        grids, flip = flip_bev(
            [getattr(sample, name) for name in loaded],
            bool(draw_x < self.bev_flip_prob[0]),
            bool(draw_y < self.bev_flip_prob[1]),
            sample.pc_range,
        )
        for name, grid in zip(loaded, grids, strict=True):
            setattr(sample, name, grid)
        sample.ego2occ = flip @ sample.ego2occ
        if sample.points is not None:
            sample.points = move_points(sample.points, flip)
        return sample
