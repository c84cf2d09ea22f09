"""Rays of ground-truth grids, cast once and kept on disk. Legend: O origins, D directions."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.logging import print_log

from loaders.errors import BadDataError, MissingDataError
from loaders.metrics.ray_iou import cast_label_rays, ray_directions
from loaders.safe_reading import MIB, FileKind, open_arrays

Rays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]

_RAY_FILE = FileKind("ray file", "cast the rays", "cast the rays again", max_bytes=64 * MIB)
# Increase it when the same grid and origins result in other rays.
_VERSION = 2


class RayCache:
    """Cache of a grid's rays: they are cast, or read if the same grid was cast before.

    Files are named after a hash of all inputs. A folder may therefore serve several data sets and
    processes, and changed labels are cast again. Broken files are replaced. If files cannot be
    written, rays are cast in every evaluation.

    Args:
        folder: Created if needed; about 0.3 MB per Occ3D sample.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._can_write = True

    def cast(
        self,
        grid: npt.NDArray[np.uint8],
        origins: npt.NDArray[np.floating[Any]],
        pc_range: Sequence[float],
        voxel_size: Sequence[float],
        empty_label: int,
    ) -> Rays:
        """Return class uint8 [O * D] and depth float32 [O * D] of a grid's rays.

        Args: see `loaders.metrics.ray_iou.cast_label_rays`.
        """
        digest = hashlib.sha256(np.ascontiguousarray(grid).data)
        digest.update(np.ascontiguousarray(origins, dtype=np.float64).data)
        settings = (_VERSION, grid.shape, list(pc_range), list(voxel_size), empty_label)
        digest.update(repr((*settings, len(ray_directions()))).encode())
        path = self._folder / f"{digest.hexdigest()[:40]}.npz"
        found = read_rays(path, len(origins) * len(ray_directions()))
        if found is not None:
            return found
        label, depth = cast_label_rays([grid], origins, pc_range, voxel_size, empty_label)
        if self._can_write:
            try:
                self._write(path, label[0], depth[0])
            except OSError as error:
                self._can_write = False
                print_log(
                    f"the ray cache {self._folder} cannot be written ({error}): the evaluation "
                    "continues without it",
                    logger="current",
                    level=logging.WARNING,
                )
        return label[0], depth[0]

    def _write(
        self, path: Path, label: npt.NDArray[np.uint8], depth: npt.NDArray[np.float32]
    ) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, label=label, depth=depth)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def read_rays(path: Path, number: int) -> Rays | None:
    """Return the rays of a file, or None if it is missing or incomplete."""
    try:
        with open_arrays(path, _RAY_FILE, _RAY_FILE.max_bytes) as file:
            for name, dtype in (("label", np.uint8), ("depth", np.float32)):
                if name not in file or file.header(name)[:2] != ((number,), np.dtype(dtype)):
                    return None
            return file.read("label"), file.read("depth")
    except (BadDataError, MissingDataError):
        return None
