"""Difference between a prediction and the ground truth, as a label grid for the renderer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scripts.runtime.errors import ConfigError
from scripts.visualization.palette import DIFFERENCE_COLOURS, Difference


def difference_grid(
    prediction: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    empty_label: int,
    scored: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Compare two label grids voxel by voxel.

    Args:
        prediction: uint8 [X, Y, Z].
        truth: uint8 [X, Y, Z].
        empty_label: label of free space.
        scored: bool [X, Y, Z] voxels that the metric counts (the camera mask); None: all. In other
            voxels the ground truth is shown as "not scored" and the prediction is omitted.

    Returns:
        uint8 [X, Y, Z], labels of `scripts.visualization.palette.Difference`.

    Raises:
        ConfigError: the grids have different shapes.
    """
    shapes = {prediction.shape, truth.shape} | ({scored.shape} if scored is not None else set())
    if len(shapes) > 1:
        raise ConfigError(
            f"prediction {prediction.shape} and ground truth {truth.shape} must have the same "
            "shape: check pc_range and voxel_size in the config."
        )
    predicted, filled = prediction != empty_label, truth != empty_label
    result = np.full(truth.shape, Difference.FREE, dtype=np.uint8)
    result[predicted & filled] = Difference.WRONG_CLASS
    result[predicted & filled & (prediction == truth)] = Difference.RIGHT
    result[~predicted & filled] = Difference.MISSED
    result[predicted & ~filled] = Difference.INVENTED
    if scored is not None:
        result[~scored] = Difference.FREE
        result[~scored & filled] = Difference.UNSCORED
    return result


def difference_colours() -> NDArray[np.uint8]:
    """Return the colours of the difference labels without free: uint8 [5, 3]."""
    return np.asarray(list(DIFFERENCE_COLOURS.values()), dtype=np.uint8)
