"""Occ3D labels and flips of the bird's-eye view. Legend: X Y Z voxels along the axes."""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.registry import TRANSFORMS

from loaders.errors import BadDataError, MissingDataError
from loaders.sample import OccSample
from loaders.transforms.cache import ArrayCache
from loaders.transforms.geometry import flip_bev

_KEYS = ("semantics", "mask_camera", "mask_lidar")


def read_occ3d_labels(
    path: str, grid_shape: tuple[int, int, int], num_classes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Reads an Occ3D ``labels.npz``.

    Args:
        path: File with ``semantics``, ``mask_camera`` and ``mask_lidar``.
        grid_shape: (X, Y, Z) that the arrays must have.
        num_classes: Number of classes, free included; labels must be below it.

    Returns:
        Semantics uint8, camera mask bool and LiDAR mask bool, each [X, Y, Z].

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
        if array.shape != grid_shape:
            raise BadDataError(
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
        raise BadDataError(
            f"label file {path} has class {low if low < 0 else high}, but class_names of the "
            f"config allow 0 to {num_classes - 1}: {restore}, or correct class_names"
        )
    camera, lidar = (mask.astype(bool, copy=False) for mask in arrays[1:])
    return semantics.astype(np.uint8, copy=False), camera, lidar


@TRANSFORMS.register_module()
class LoadOcc3DLabels:
    """Loads semantics and visibility masks of a sample.

    Args:
        label_dir: Folder within the data root; files are ``<scene_name>/<token>/labels.npz``.
        cache_mb: Keep labels up to so many MiB in each process (1.8 MiB per Occ3D sample).
    """

    def __init__(self, label_dir: str = "gts", cache_mb: float = 0.0) -> None:
        self.label_dir = label_dir
        self._cache = ArrayCache(cache_mb)

    def __call__(self, sample: OccSample) -> OccSample:
        """Sets ``voxel_semantics``, ``mask_camera`` and ``mask_lidar``."""
        path = os.path.join(
            sample.data_root, self.label_dir, sample.scene_name, sample.sample_token, "labels.npz"
        )
        shape, num_classes = sample.grid_shape, len(sample.class_names) + 1
        arrays = self._cache.get(path, lambda: read_occ3d_labels(path, shape, num_classes))
        # Copies: whoever changes a sample must not change the cache.
        sample.voxel_semantics, sample.mask_camera, sample.mask_lidar = (a.copy() for a in arrays)
        return sample


@TRANSFORMS.register_module()
class RandomFlipBEV:
    """Reverses the x and/or y axis of the labels and mirrors ``ego2occ`` alike.

    Does nothing in test mode.

    Args:
        prob_x: Probability of reversing x.
        prob_y: Probability of reversing y.
    """

    def __init__(self, prob_x: float = 0.5, prob_y: float = 0.5) -> None:
        self.prob_x = prob_x
        self.prob_y = prob_y

    def __call__(self, sample: OccSample) -> OccSample:
        """Flips labels and masks, if loaded, and sets ``ego2occ``."""
        if sample.rng is None:
            return sample
        draw_x, draw_y = sample.rng.uniform(size=2)
        names = ("voxel_semantics", "mask_camera", "mask_lidar")
        loaded = [name for name in names if getattr(sample, name) is not None]
        grids, flip = flip_bev(
            [getattr(sample, name) for name in loaded],
            bool(draw_x < self.prob_x),
            bool(draw_y < self.prob_y),
            sample.pc_range,
        )
        for name, grid in zip(loaded, grids, strict=True):
            setattr(sample, name, grid)
        sample.ego2occ = flip @ sample.ego2occ
        return sample
