"""The voxel grid of a model's predictions, and conversions between its coordinates.

"Normalised" coordinates map the grid's range to [0, 1] per axis and are not clamped. "Metres" are
coordinates of the occ frame, the frame of the voxel grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor

from models.errors import ModelConfigError


class GridModule(BaseModule):
    """Base class of modules with a voxel grid, stored in buffers as in published checkpoints.

    The configuration sets the voxel size; loading a checkpoint does not change it. A model can
    therefore be evaluated on a finer or coarser grid than the training grid. The weights depend on
    the range, so loading a checkpoint with another range is an error.

    Attributes:
        grid_range: `pc_range` as Python numbers.
        grid_shape: Numbers of voxels `(X, Y, Z)`.

    Args:
        pc_range: `(x_min, y_min, z_min, x_max, y_max, z_max)` in metres.
        voxel_size: Edge lengths `(x, y, z)` of a voxel in metres.
        buffers: Names of the buffers to save in the state dict, out of `pc_range`, `scene_size`,
            `voxel_size` and `voxel_num`.
        init_cfg: Initialisation configuration of MMEngine.

    Raises:
        ModelConfigError: If the range is empty or not a whole number of voxels.
    """

    pc_range: Tensor  # [6] metres
    scene_size: Tensor  # [3] metres
    voxel_size: Tensor  # [3] metres
    voxel_num: Tensor  # [3] int64

    def __init__(
        self,
        pc_range: Sequence[float],
        voxel_size: Sequence[float],
        buffers: Sequence[str],
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.grid_range = tuple(map(float, pc_range))
        self.grid_shape = grid_shape(pc_range, voxel_size)
        low, high = torch.tensor(pc_range, dtype=torch.float64).view(2, 3)
        values = dict(
            pc_range=torch.tensor(pc_range, dtype=torch.float32),
            scene_size=(high - low).float(),
            voxel_size=torch.tensor(voxel_size, dtype=torch.float32),
            voxel_num=torch.tensor(self.grid_shape, dtype=torch.int64),
        )
        for name, value in values.items():
            self.register_buffer(name, value, persistent=name in buffers)
        self._saved_grid = tuple(name for name in values if name in buffers)

    def normalise(self, points: Tensor) -> Tensor:
        """Convert metres `[..., 3]` to normalised coordinates."""
        return (points - self.pc_range[:3]) / self.scene_size

    def denormalise(self, points: Tensor) -> Tensor:
        """Convert normalised coordinates `[..., 3]` to metres."""
        return points * self.scene_size + self.pc_range[:3]

    def voxel_centres(self, index: Tensor) -> Tensor:
        """Return the centres in metres of voxels with indices `[..., 3]` (x, y, z)."""
        return (index + 0.5) * self.voxel_size + self.pc_range[:3]

    def has_range(self, stored: Tensor) -> bool:
        """Return whether a checkpoint's range, [6] in metres, equals this module's range."""
        if stored.shape != self.pc_range.shape:
            return False
        return torch.allclose(stored.to(self.pc_range), self.pc_range, atol=1e-4)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        error_msgs: list[str] = args[-1] if args else kwargs["error_msgs"]
        own = {name: getattr(self, name).clone() for name in self._saved_grid}
        stored_range = state_dict.get(prefix + "pc_range")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for name, value in own.items():
            getattr(self, name).copy_(value)
        if stored_range is not None and not self.has_range(stored_range):
            error_msgs.append(
                f"{prefix}pc_range: the checkpoint was trained for the range "
                f"{stored_range.tolist()}, the configuration has {self.pc_range.tolist()}."
            )


def grid_shape(pc_range: Sequence[float], voxel_size: Sequence[float]) -> tuple[int, int, int]:
    """Return the numbers of voxels `(X, Y, Z)` of a range.

    Raises:
        ModelConfigError: If the range is empty or not a whole number of voxels along an axis.
    """
    if len(pc_range) != 6 or len(voxel_size) != 3:
        raise ModelConfigError(
            f"pc_range needs 6 numbers and voxel_size 3; got {list(pc_range)} and "
            f"{list(voxel_size)}."
        )
    shape = []
    for low, high, size in zip(pc_range[:3], pc_range[3:], voxel_size, strict=True):
        count = (high - low) / size if size > 0 else 0.0
        if round(count) < 1 or abs(count - round(count)) > 1e-3:
            raise ModelConfigError(
                f"pc_range {list(pc_range)} is not a positive whole number of voxels of size "
                f"{list(voxel_size)}: change one of them."
            )
        shape.append(round(count))
    return shape[0], shape[1], shape[2]
