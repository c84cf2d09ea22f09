"""Predictions on disk: one compressed file per sample, to be scored later.

A file `<sample token>.npz` has one of these forms:

- sparse: `coords` integers [n, 3], voxels (x, y, z), each once, and `labels` integers [n];
  all other voxels are free. `save_prediction` writes this form, with `scores` [n];
- dense: `semantics` integers [X, Y, Z], free voxels with the label after the last class;
- a dense array under any other name, if it is the only array (`arr_0` of `np.savez`, as in
  submissions to the Occ3D benchmark: `save_submission`).
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.errors import UnknownClassError, WrongShapeError
from loaders.metrics.occupancy import dense_labels
from loaders.safe_reading import MIB, FileKind, StoredArrays, open_arrays

IntArray = npt.NDArray[np.integer[Any]]

_PREDICTION_FILE = FileKind(
    "prediction",
    "predict all samples of the split, or score fewer",
    "predict this sample again",
    max_bytes=512 * MIB,
)
# Size that predictions of any grid may have; the grid of the config may need more.
_MAX_BYTES = 128 * MIB


def prediction_path(folder: str | os.PathLike[str], sample_token: str) -> Path:
    """Return the path of a sample's prediction."""
    return Path(folder) / f"{sample_token}.npz"


def save_prediction(
    folder: str | os.PathLike[str],
    sample_token: str,
    coords: IntArray,
    labels: IntArray,
    scores: npt.NDArray[np.floating[Any]] | None = None,
) -> Path:
    """Write a sparse prediction atomically.

    Args:
        folder: Must exist.
        sample_token: Token of the key frame.
        coords: [n, 3] voxels (x, y, z).
        labels: [n] classes.
        scores: [n] in [0, 1], kept in half precision.
    """
    # Sorted voxels have similar neighbours and compress to a third.
    order = np.lexsort(coords.T[::-1])
    arrays: dict[str, npt.NDArray[Any]] = {
        "coords": coords[order].astype(np.uint16),
        "labels": labels[order].astype(np.uint8),
    }
    if scores is not None:
        arrays["scores"] = scores[order].astype(np.float16)
    return _write(prediction_path(folder, sample_token), arrays)


def save_submission(
    folder: str | os.PathLike[str],
    sample_token: str,
    coords: IntArray,
    labels: IntArray,
    grid_shape: tuple[int, int, int],
    empty_label: int,
) -> Path:
    """Write a prediction in the format of the Occ3D benchmark: one uint8 array [X, Y, Z]."""
    grid = dense_labels(coords, labels, grid_shape, empty_label)
    return _write(prediction_path(folder, sample_token), {"arr_0": grid})


def load_prediction(
    path: str | os.PathLike[str], grid_shape: tuple[int, int, int], empty_label: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Read a prediction in any of this module's forms.

    Args:
        path: File.
        grid_shape: (X, Y, Z) of the grid it belongs to.
        empty_label: Label of free voxels; labels must not be above it.

    Returns:
        `pred_coords` int64 [n, 3] and `pred_labels` int64 [n], free voxels left out.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is broken or does not fit the grid or the classes.
    """
    limit = max(_MAX_BYTES, 32 * math.prod(grid_shape))
    with open_arrays(path, _PREDICTION_FILE, limit) as file:
        if "coords" in file or "labels" in file:
            coords, labels = _sparse(file, path)
            if len(coords) and not ((coords >= 0).all() and (coords < np.array(grid_shape)).all()):
                raise WrongShapeError(f"prediction {path} has voxels outside the grid {grid_shape}")
            _check_classes(labels, empty_label, path)
        else:
            dense = _dense(file, path, grid_shape)
            _check_classes(dense, empty_label, path)
            coords = np.argwhere(dense != empty_label)
            labels = dense[tuple(coords.T)]
    coords, labels = coords.astype(np.int64), labels.astype(np.int64)
    occupied = labels != empty_label
    return {"pred_coords": coords[occupied], "pred_labels": labels[occupied]}


def _check_classes(labels: IntArray, empty_label: int, path: str | os.PathLike[str]) -> None:
    if labels.size and not 0 <= labels.min() <= labels.max() <= empty_label:
        raise UnknownClassError(
            f"prediction {path} has classes from {labels.min()} to {labels.max()}, the config "
            f"allows 0 to {empty_label}"
        )


def _dense(
    file: StoredArrays, path: str | os.PathLike[str], grid_shape: tuple[int, int, int]
) -> IntArray:
    """Read the label grid of a file; the only array of a file may have any name."""
    name = "semantics" if "semantics" in file or len(file.names) != 1 else file.names[0]
    if name not in file:
        names = ", ".join(file.names[:5]) or "nothing"
        raise _PREDICTION_FILE.broken(
            path, f"has neither 'coords' and 'labels' nor 'semantics' (found {names})"
        )
    header = file.header(name)
    if header.shape != grid_shape or header.dtype.kind not in "ui":
        raise WrongShapeError(
            f"prediction {path} holds {header.dtype} {header.shape}, expected integers {grid_shape}"
        )
    return file.read(name)


def _sparse(file: StoredArrays, path: str | os.PathLike[str]) -> tuple[IntArray, IntArray]:
    """Read voxels [n, 3] and classes [n] of a file."""
    if "coords" not in file or "labels" not in file:
        raise _PREDICTION_FILE.broken(path, "has only one of 'coords' and 'labels'")
    coords, labels = file.header("coords"), file.header("labels")
    if len(labels.shape) != 1 or coords.shape != (*labels.shape, 3):
        raise _PREDICTION_FILE.broken(
            path,
            f"has coords {coords.shape} and labels {labels.shape}, expected [n, 3] and [n]",
        )
    if coords.dtype.kind not in "ui" or labels.dtype.kind not in "ui":
        raise _PREDICTION_FILE.broken(path, "has coords or labels that are not integers")
    return file.read("coords"), file.read("labels")


def _write(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> Path:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.chmod(temporary, 0o644)  # mkstemp files are readable by their owner only
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path
