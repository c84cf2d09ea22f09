"""Label grids of a batch.

Dimension letters: B batch, X, Y, Z voxels along the axes, M occupied voxels of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.host_numbers import HostNumbers

from .results import positions

# Label of voxels of unknown state, which are ignored by all losses.
UNKNOWN_LABEL = 255


@dataclass(frozen=True)
class LabelGrids:
    """Labels of a batch and the number of occupied voxels per sample.

    Attributes:
        semantics: `[B, X, Y, Z]`.
        is_occupied: bool `[B*X*Y*Z]`.
        counts: M of every sample, copied to the host asynchronously.
    """

    semantics: Tensor
    is_occupied: Tensor
    counts: HostNumbers

    @classmethod
    def of(cls, semantics: Tensor, empty_label: int) -> LabelGrids:
        """Return the label grids of a batch.

        Args:
            semantics: `[B, X, Y, Z]`.
            empty_label: Label of free voxels.
        """
        is_occupied = ((semantics != empty_label) & (semantics != UNKNOWN_LABEL)).flatten()
        counts = is_occupied.unflatten(0, (len(semantics), -1)).sum(1)
        return cls(semantics, is_occupied, HostNumbers(counts))

    def occupied_voxels(self) -> list[tuple[Tensor, Tensor]]:
        """Return voxels int64 `[M, 3]` (x, y, z) and labels int64 `[M]` of every sample.

        This synchronises with the device only if the counts have not arrived yet.
        """
        counts = self.counts.read()
        if self.semantics.device.type == "cpu":
            index = self.is_occupied.nonzero().squeeze(1)
        else:
            index = positions(self.is_occupied, sum(counts))
        _, x_num, y_num, z_num = self.semantics.shape
        labels = self.semantics.flatten()[index].long()
        rest, z = index.div(z_num, rounding_mode="floor"), index.remainder(z_num)
        rest, y = rest.div(y_num, rounding_mode="floor"), rest.remainder(y_num)
        xyz = torch.stack([rest.remainder(x_num), y, z], 1)
        return list(zip(xyz.split(counts), labels.split(counts), strict=True))
