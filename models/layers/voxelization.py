"""Voxelisation of LiDAR points with mean features.

Dimension letters: B batch, n points of a sample, F features of a point, V voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from models import ops

from .grid import grid_shape


class Voxels(NamedTuple):
    """Voxels of a batch.

    Attributes:
        features: `[V, F]`.
        coords: int64 `[V, 4]` (sample, z, y, x), the order of LiDAR encoders.
        chain: The voxels and those that convolutions reach from them, where they have been found
            with them; None where not.
    """

    features: Tensor
    coords: Tensor
    chain: ops.VoxelChain | None = None


@MODELS.register_module()
class MeanVoxelizer(nn.Module):
    """Hard voxelisation that averages the points of each voxel, as in SECOND.

    Each voxel uses its first `max_points` points, in input order. Each sample keeps the
    `max_voxels` voxels whose first points come first. The selection is deterministic and the same
    on every device.

    Args:
        pc_range: `(x_min, y_min, z_min, x_max, y_max, z_max)` in metres; points outside are
            dropped.
        voxel_size: Edge lengths `(x, y, z)` in metres.
        max_points: Largest number of points per voxel.
        max_voxels: Largest number of voxels per sample, in training and in evaluation.

    Raises:
        ModelConfigError: If the range is empty or not a whole number of voxels.
    """

    low: Tensor
    high: Tensor
    voxel_size: Tensor

    def __init__(
        self,
        pc_range: Sequence[float],
        voxel_size: Sequence[float],
        max_points: int = 10,
        max_voxels: tuple[int, int] = (90_000, 120_000),
    ) -> None:
        super().__init__()
        self.grid_shape = grid_shape(pc_range, voxel_size)
        self.max_points = max_points
        self.max_voxels = max_voxels
        for name, values in (
            ("low", pc_range[:3]),
            ("high", pc_range[3:]),
            ("voxel_size", voxel_size),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    @torch.no_grad()
    def forward(
        self,
        points: Sequence[Tensor],
        shape: tuple[int, int, int] | None = None,
        steps: Sequence[ops.ConvStep] = (),
    ) -> Voxels:
        """Voxelise the points of every sample.

        On a device other than the CPU, what convolutions reach from the voxels is found with the
        same wait.

        Args:
            points: `[n, F]` of every sample; the first columns are x, y, z.
            shape: Size (z, y, x) of the grid of the first convolution, at least that of the
                voxels; None for that.
            steps: The convolutions, see `ops.voxel_chain`.
        """
        if points[0].device.type != "cpu":
            x_num, y_num, z_num = self.grid_shape
            return self._voxelise_on_device(points, shape or (z_num, y_num, x_num), steps)
        features, coords = [], []
        for i, cloud in enumerate(points):
            mean, zyx = self._voxelise(cloud)
            features.append(mean)
            coords.append(torch.cat([zyx.new_full((len(zyx), 1), i), zyx], dim=1))
        return Voxels(torch.cat(features), torch.cat(coords))

    def _voxelise_on_device(
        self,
        clouds: Sequence[Tensor],
        shape: tuple[int, int, int],
        steps: Sequence[ops.ConvStep],
    ) -> Voxels:
        """Do the same with one wait for the device, and sums in the order of the points."""
        points = torch.cat(list(clouds))
        lengths = [len(cloud) for cloud in clouds]
        sample = torch.cat(
            [torch.full((n,), i, device=points.device) for i, n in enumerate(lengths)]
        )
        index = torch.floor((points[:, :3] - self.low) / self.voxel_size)
        sizes = torch.stack([self.low.new_full((), size) for size in self.grid_shape])
        inside = ((index >= 0) & (index < sizes)).all(1)
        x, y, z = torch.where(inside[:, None], index, 0).long().unbind(1)
        z_num, y_num, x_num = shape
        key = ((sample * z_num + z) * y_num + y) * x_num + x
        chain: ops.VoxelChain | None
        chain = ops.voxel_chain(key.where(inside, -1), len(clouds), shape, steps)
        voxels, ends = chain.sets[0], chain.ends[0].tolist()
        voxel = chain.place.where(inside, len(voxels))  # points outside come last
        order = torch.argsort(voxel, stable=True)
        count = voxel.new_zeros(len(voxels) + 1).index_add_(0, voxel, torch.ones_like(voxel))
        start = (count.cumsum(0) - count)[:-1]
        count = count[:-1]
        total = points.new_zeros(len(voxels), points.shape[1])
        for i in range(self.max_points):
            position = order[(start + i).clamp(max=max(len(points) - 1, 0))]
            total += torch.where((i < count)[:, None], points[position], 0.0)
        mean = total / count.clamp(max=self.max_points).unsqueeze(1)
        first = order[start]
        most = self.max_voxels[0 if self.training else 1]
        coords = voxels.coords()
        ranges = list(zip([0, *ends[:-1]], ends, strict=True))
        if any(end - begin > most for begin, end in ranges):
            rows = [
                begin + torch.argsort(first[begin:end])[:most].sort().values
                for begin, end in ranges
            ]
            mean, coords = mean[torch.cat(rows)], coords[torch.cat(rows)]
            chain = None  # it holds the voxels that are left out
        return Voxels(mean, coords, chain)

    def _voxelise(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean features `[V, F]` and (z, y, x) `[V, 3]` of one sample."""
        index = torch.floor((points[:, :3] - self.low) / self.voxel_size)
        sizes = index.new_tensor(self.grid_shape)
        inside = ((index >= 0) & (index < sizes)).all(1)
        points, index = points[inside], index[inside].long()
        x, y, z = index.unbind(1)
        x_num, y_num, _ = self.grid_shape
        key, voxel, count = torch.unique(
            (z * y_num + y) * x_num + x, return_inverse=True, return_counts=True
        )
        # points grouped by voxel, in input order within each voxel
        order = torch.argsort(voxel, stable=True)
        start = count.cumsum(0) - count
        rank = torch.arange(len(order), device=order.device) - start[voxel[order]]
        first = order[start]  # the first point of every voxel
        counted = order[rank < self.max_points]
        total = points.new_zeros(len(key), points.shape[1])
        total.index_add_(0, voxel[counted], points[counted])
        mean = total / count.clamp(max=self.max_points).unsqueeze(1)
        kept = torch.argsort(first)[: self.max_voxels[0 if self.training else 1]]
        kept = kept.sort().values  # sorted voxels make the convolutions faster
        key = key[kept]
        rest, x = key // x_num, key % x_num
        return mean[kept], torch.stack([rest // y_num, rest % y_num, x], dim=1)
