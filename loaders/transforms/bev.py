"""Rotation and scaling of the scene in bird's-eye view. Legend: X Y Z voxels along the axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.registry import TRANSFORMS

from loaders.errors import LoaderConfigError
from loaders.lidar.points import move_points
from loaders.sample import UNKNOWN_LABEL, OccSample

# Values of voxels whose content comes from outside the grid.
_FILLS: dict[str, Any] = {
    "voxel_semantics": UNKNOWN_LABEL,
    "mask_camera": False,
    "mask_lidar": False,
    "mask_valid": False,
}
_QUARTERS = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))


def turn_and_scale(
    rotation_deg: float, quarter_turns: int, scale: float, pc_range: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Return the matrix [4, 4] that rotates and scales x and y about the centre of a range.

    Args:
        rotation_deg: Counter-clockwise seen from above, degrees.
        quarter_turns: Further rotations by 90 degrees, which are exact.
        scale: Factor of x and y; z is not scaled, so labels need no resampling along it.
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
    """
    cos, sin = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    quarter_cos, quarter_sin = _QUARTERS[quarter_turns % 4]
    turn = np.array([[cos, -sin], [sin, cos]])
    quarter = np.array([[quarter_cos, -quarter_sin], [quarter_sin, quarter_cos]])
    middle = (np.array(pc_range[:2]) + np.array(pc_range[3:5])) / 2
    matrix = np.eye(4)
    matrix[:2, :2] = scale * (quarter @ turn)
    matrix[:2, 3] = middle - matrix[:2, :2] @ middle
    return matrix


def resample_bev(
    grid: npt.NDArray[Any],
    matrix: npt.NDArray[np.float64],
    pc_range: Sequence[float],
    fill: Any,
) -> npt.NDArray[Any]:
    """Return a transformed grid: each voxel takes the source value at its centre.

    If the matrix maps voxel centres to voxel centres, as a quarter turn of a square grid of square
    voxels does, the result is exact.

    Args:
        grid: [X, Y, ...].
        matrix: [4, 4] of :func:`turn_and_scale`.
        pc_range: (x0, y0, z0, x1, y1, z1) metres of the grid.
        fill: Value of voxels whose content comes from outside the grid.
    """
    low, high = np.array(pc_range[:2]), np.array(pc_range[3:5])
    shape = np.array(grid.shape[:2])
    size = (high - low) / shape
    x, y = np.indices(tuple(shape))
    centres = low + (np.stack([x, y], axis=-1) + 0.5) * size  # [X, Y, 2]
    before = np.linalg.inv(matrix)
    index = np.floor((centres @ before[:2, :2].T + before[:2, 3] - low) / size).astype(np.int64)
    inside = ((index >= 0) & (index < shape)).all(axis=-1)
    index[~inside] = 0
    moved = grid[index[..., 0], index[..., 1]]
    moved[~inside] = fill
    return moved


@TRANSFORMS.register_module()
class RandomTurnScaleBEV:
    """Rotate and scale the scene in bird's-eye view: labels, masks, ``ego2occ``, LiDAR points.

    Labels are resampled with the nearest voxel. This is exact for quarter turns of a square grid.
    Otherwise the error is up to half a voxel, and structures one voxel thin may get holes. Voxels
    from outside the grid have an unknown state. Does nothing in test mode. If all ranges are off,
    nothing is drawn from the sample's generator. Put it after the transforms that load labels and
    points. The frames of a sequence have the same rotation and scale.

    Args:
        bev_rotation_deg: Largest rotation to either side, degrees; uniform. 0 is off.
        bev_quarter_turns: Whether to add a random multiple of 90 degrees.
        bev_scale_range: Smallest and largest factor of x and y; uniform.

    Raises:
        LoaderConfigError: If a range is invalid.
    """

    def __init__(
        self,
        bev_rotation_deg: float = 0.0,
        bev_quarter_turns: bool = False,
        bev_scale_range: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        low, high = map(float, bev_scale_range)
        if not 0 < low <= high < math.inf:
            raise LoaderConfigError(
                f"bev_scale_range is {bev_scale_range}: use two factors above 0, the smaller first"
            )
        if not 0 <= bev_rotation_deg <= 180:
            raise LoaderConfigError(f"bev_rotation_deg is {bev_rotation_deg}: use 0 to 180 degrees")
        self.bev_rotation_deg = float(bev_rotation_deg)
        self.bev_quarter_turns = bev_quarter_turns
        self.bev_scale_range = (low, high)

    @property
    def is_off(self) -> bool:
        """Whether samples stay unchanged."""
        no_turn = self.bev_rotation_deg == 0 and not self.bev_quarter_turns
        return no_turn and self.bev_scale_range == (1.0, 1.0)

    def __call__(self, sample: OccSample) -> OccSample:
        """Transform labels, masks and points, if loaded, and set ``ego2occ``."""
        rng = sample.bev_rng
        if rng is None or self.is_off:
            return sample
        turn, quarter, scale = rng.uniform(size=3)
        low, high = self.bev_scale_range
        matrix = turn_and_scale(
            (2 * turn - 1) * self.bev_rotation_deg,
            int(4 * quarter) if self.bev_quarter_turns else 0,
            low + (high - low) * scale,
            sample.pc_range,
        )
        for name, fill in _FILLS.items():
            grid = getattr(sample, name)
            if grid is not None:
                setattr(sample, name, resample_bev(grid, matrix, sample.pc_range, fill))
        sample.ego2occ = matrix @ sample.ego2occ
        if sample.points is not None:
            sample.points = move_points(sample.points, matrix)
        return sample
