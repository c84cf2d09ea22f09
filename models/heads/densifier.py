"""Continuous prediction discretization (CPD): from points and features to voxel logits.

Dimension letters: B batch, Q queries, R points of a query, F features of a point, n = B*Q*R points,
V voxels with a point, W voxels after dilation, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from models import ops
from models.layers import GridModule, SparseConv3d, SparseTensor, SubMConv3d

from .seen_surfaces import ExtraPoints


class VoxelLogits(NamedTuple):
    """Sigmoid logits of a sparse set of voxels.

    Attributes:
        coords: int64 `[W, 4]` (sample, x, y, z).
        logits: `[W, K]`.
        counts: None; or, if the lengths of the lists were set without synchronisation, int64 `[2]`
            on the device: the number of voxels with a point, and W. Rows past them have a negative
            sample; voxels beyond the length are missing.
    """

    coords: Tensor
    logits: Tensor
    counts: Tensor | None = None


class PFNLayer(nn.Module):
    """Linear, batch norm, ReLU and the maximum over the points of a voxel.

    This is the feature network of PointPillars (arXiv 1812.05784) without a limit on points.

    Args:
        in_channels: Channels of a point.
        out_channels: Channels of the result. In all layers except the last, half of them are
            features of the point and half the maximum of its voxel.
        last: Whether the layer is the last, which returns only features of voxels.
        bn_momentum: Weight of a batch's statistics in the running ones.
    """

    def __init__(
        self, in_channels: int, out_channels: int, last: bool, bn_momentum: float = 0.01
    ) -> None:
        super().__init__()
        self.last = last
        units = out_channels if last else out_channels // 2
        self.linear = nn.Linear(in_channels, units, bias=False)
        self.norm = nn.BatchNorm1d(units, eps=1e-3, momentum=bn_momentum)

    def forward(
        self, points: Tensor, voxels: Tensor | None, voxel_index: Tensor, num_voxels: int
    ) -> tuple[Tensor, Tensor]:
        """Return features of points `[n, units]` and their maxima over voxels `[V, units]`.

        Args:
            points: `[n, C]`.
            voxels: `[V, in - C]`, input that the points of a voxel share, after `points` in
                the order of channels; None if there is none.
            voxel_index: `[n]`, the voxel of each point.
            num_voxels: V.

        Returns:
            The features of points are not used after the last layer.
        """
        weight, bias, norm = self._folded()
        if voxels is None:
            x = norm(F.linear(points, weight, bias))
        else:
            # the part of the product that the points of a voxel share is computed once per voxel
            of_point, of_voxel = weight.split([points.shape[1], voxels.shape[1]], dim=1)
            shared = F.linear(voxels, of_voxel, bias)
            if self.last and not self.norm.training:  # does not change the order of points
                x = F.linear(points, of_point)
                return x, F.relu(ops.voxel_max(x, voxel_index, num_voxels) + shared)
            x = norm(shared.index_select(0, voxel_index).addmm_(points, of_point.t()))
        if self.last:  # maximum and ReLU commute, and there are fewer voxels than points
            return x, F.relu(ops.voxel_max(x, voxel_index, num_voxels), inplace=True)
        x = F.relu(x, inplace=True)
        return x, ops.voxel_max(x, voxel_index, num_voxels)

    def _folded(self) -> tuple[Tensor, Tensor | None, nn.Module]:
        """Return weight, bias and the norm after them; fixed norms are folded into the weight."""
        if self.norm.training:
            return self.linear.weight, None, self.norm
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        scale = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
        return self.linear.weight * scale[:, None], self.norm.bias - mean * scale, nn.Identity()


def join_points(of_queries: Tensor, others: Tensor) -> Tensor:
    """Return `[B, Q*R + M, 1, C]` from values of queries `[B, Q, R, C]` and others `[B, M, C]`."""
    return torch.cat([of_queries.flatten(1, 2), others], dim=1).unsqueeze(2)


@MODELS.register_module()
class CPDDensifier(GridModule):
    """Discretize continuous points into voxels with class logits (OPUS-V2).

    Only this step depends on the grid: a trained model may be run with another voxel size.

    Args:
        pc_range: `(x_min, y_min, z_min, x_max, y_max, z_max)` in metres of the occ frame.
        voxel_size: Edge lengths `(x, y, z)` of a voxel in metres.
        num_classes: K.
        point_channels: F.
        pfn_channels: Outputs of the point networks; the last is also the width of the sparse
            convolutions.
        prior_probability: Initial probability given by the last bias.
        bn_momentum: Weight of a batch's statistics in the running ones of the point networks; a
            training of a few hundred iterations needs more than the published 0.01.
        sparse_backend: Implementation of the sparse convolutions on CUDA, see `SparseConv3d`.
        init_cfg: Initialisation configuration of MMEngine.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        voxel_size: Sequence[float],
        num_classes: int,
        point_channels: int = 32,
        pfn_channels: Sequence[int] = (64, 64),
        prior_probability: float = 0.01,
        bn_momentum: float = 0.01,
        sparse_backend: str = "own",
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(pc_range, voxel_size, ("pc_range", "voxel_num"), init_cfg)
        widths = [6 + point_channels, *pfn_channels]
        last = len(pfn_channels) - 1
        self.pfn_layers = nn.ModuleList(
            PFNLayer(widths[i], widths[i + 1], last=i == last, bn_momentum=bn_momentum)
            for i in range(len(pfn_channels))
        )
        logits = SubMConv3d(widths[-1], num_classes, backend=sparse_backend)
        assert logits.bias is not None
        nn.init.constant_(logits.bias, math.log(prior_probability / (1 - prior_probability)))
        dilate = SparseConv3d(widths[-1], widths[-1], backend=sparse_backend)
        self.cls_branch = nn.Sequential(dilate, nn.ReLU(), logits)

    def forward(
        self,
        points: Tensor,
        point_feats: Tensor,
        chain: ops.VoxelChain | None = None,
        first_grid: int = 0,
        extra: ExtraPoints | None = None,
    ) -> VoxelLogits:
        """Discretize the points of a batch.

        Args:
            points: `[B, Q, R, 3]`, metres of the occ frame; those outside the range belong to the
                nearest voxel. Gradients reach them through their offsets.
            point_feats: `[B, Q, R, F]`.
            chain: Voxels of the points from `voxel_chains`; None to compute them.
            first_grid: Index of the first sample's grid in the chain.
            extra: Additional points, which belong to no query.
        """
        # The point networks are small; sparse convolutions on a GPU apply autocast themselves.
        with torch.autocast(points.device.type, enabled=False):
            voxels = self._voxels_of_points(points, point_feats, chain, extra)
        dilate, _, classify = self.cls_branch
        voxels = dilate(voxels)
        voxels = classify(replace(voxels, features=F.relu(voxels.features, inplace=True)))
        coords = voxels.coords
        if first_grid:
            grid, place = coords.split([1, 3], dim=1)  # an offset of four numbers would be uploaded
            coords = torch.cat([grid - first_grid, place], dim=1)
        return VoxelLogits(coords, torch.nan_to_num(voxels.features))

    def _voxels_of_points(
        self,
        points: Tensor,
        point_feats: Tensor,
        chain: ops.VoxelChain | None,
        extra: ExtraPoints | None,
    ) -> SparseTensor:
        """Return the voxels with a point and their features from the point networks."""
        from_query = points - points.mean(2, keepdim=True)
        if extra is not None:
            points = join_points(points, extra.points)
            from_query = join_points(from_query, torch.zeros_like(extra.points))
            point_feats = join_points(point_feats, extra.feats)
        index = self._voxel_index(points)  # [B, Q, R, 3]
        from_voxel = points - self.voxel_centres(index)
        x = torch.cat([from_voxel, from_query, point_feats], dim=-1).flatten(0, 2)
        if chain is None:
            coords, voxel_of_point = self._unique_voxels(index)
            num_voxels = coords.shape[0]  # the size is dynamic in an exported graph
        else:
            voxel_of_point, num_voxels = chain.place, len(chain.sets[0])
        maxima: Tensor | None = None
        for layer in self.pfn_layers:
            x, maxima = layer(x, maxima, voxel_of_point, num_voxels)
        assert maxima is not None
        if chain is None:
            return SparseTensor(maxima, coords, self.grid_shape, len(points))
        return SparseTensor.of_chain(maxima, chain, len(points))

    @torch.no_grad()
    def voxel_chain(
        self, layers: Sequence[Tensor], capacity: Sequence[int] | None = None
    ) -> ops.VoxelChain:
        """Return the voxels of points of several decoder layers, and those added by dilation.

        This synchronises with the device once for all layers, or not at all with a `capacity`.

        Args:
            layers: `[B, Q, R, 3]` each, metres of the occ frame. Sample i of layer l has the
                grid `l * B + i`.
            capacity: Lengths of the two lists of voxels, see `ops.voxel_chain`.
        """
        x_num, y_num, z_num = self.grid_shape
        keys, batch = [], len(layers[0])
        for number, points in enumerate(layers):
            x, y, z = self._voxel_index(points).unbind(-1)
            grid = torch.arange(number * batch, (number + 1) * batch, device=points.device)
            key = ((grid.view(-1, 1, 1) * x_num + x) * y_num + y) * z_num + z
            keys.append(key.flatten())
        dilate = self.cls_branch[0]
        assert isinstance(dilate, SparseConv3d)
        step = ops.ConvStep(dilate.kernel_size, dilate.stride, dilate.padding)
        return ops.voxel_chain(
            torch.cat(keys), batch * len(layers), self.grid_shape, [step], capacity
        )

    @torch.no_grad()
    def _voxel_index(self, points: Tensor) -> Tensor:
        index = torch.floor(self.normalise(points) * self.voxel_num)
        # clamped before the conversion: a far point would overflow the integers
        return torch.minimum(index.clamp(min=0), self.voxel_num - 1).long()

    @torch.no_grad()
    def _unique_voxels(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return unique (sample, x, y, z) `[V, 4]` and the voxel of every point `[n]`."""
        x_num, y_num, z_num = self.grid_shape
        sample = torch.arange(len(index), device=index.device).view(-1, 1, 1)
        x, y, z = index.unbind(-1)
        key = ((sample * x_num + x) * y_num + y) * z_num + z
        unique, inverse = ops.unique_voxels(key.flatten(), len(index) * x_num * y_num * z_num)
        rest, z = unique // z_num, unique % z_num
        rest, y = rest // y_num, rest % y_num
        return torch.stack([rest // x_num, rest % x_num, y, z], dim=1), inverse
