"""Voxels, sparse encoder and the map seen from above."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn

from models.decoder.sampling import bev_sampling
from models.layers import (
    MeanVoxelizer,
    SparseConv3d,
    SubMConv3d,
    run_sparse_encoder,
    use_own_convolutions,
)
from tests.models.cases import LIDAR_BRANCH, PC_RANGE, make_points, merge

SHAPE = (9, 60, 80)


def make_voxelizer(**changes: Any) -> MeanVoxelizer:
    config = merge(LIDAR_BRANCH["pts_voxel_layer"], pc_range=PC_RANGE, **changes)
    voxelizer: MeanVoxelizer = MODELS.build(config)
    return voxelizer


@pytest.mark.parametrize(("max_points", "max_voxels"), [(10, 900), (2, 900), (2, 37)])
def test_voxels_equal_mmcvs(max_points: int, max_voxels: int) -> None:
    mmcv_ops = pytest.importorskip("mmcv.ops")
    points = make_points(0)
    points[:, :2] *= 0.1  # several points a voxel
    theirs = mmcv_ops.Voxelization([0.2, 0.2, 0.4], PC_RANGE, max_points, max_voxels)
    rows, zyx, count = theirs(points)
    expected = dict(zip(map(tuple, zyx.tolist()), rows.sum(1) / count.unsqueeze(1), strict=True))
    voxelizer = make_voxelizer(max_points=max_points, max_voxels=(max_voxels, 1)).train()
    features, coords, _ = voxelizer([points, points])
    assert len(coords) == 2 * len(expected) > 60
    for sample in (0, 1):
        own = coords[:, 0] == sample
        found = zip(map(tuple, coords[own, 1:].tolist()), features[own], strict=True)
        for voxel, value in found:
            torch.testing.assert_close(value, expected[voxel])


def test_training_and_evaluation_keep_different_numbers_of_voxels() -> None:
    voxelizer = make_voxelizer(max_voxels=(20, 30))
    assert len(voxelizer.train()([make_points(0)]).coords) == 20
    assert len(voxelizer.eval()([make_points(0)]).coords) == 30
    empty = voxelizer([torch.zeros(0, 5), make_points(0)])
    assert empty.coords[:, 0].unique().tolist() == [1]


def make_encoder() -> Any:
    """Return an encoder with random statistics and weights."""
    encoder = MODELS.build(LIDAR_BRANCH["pts_middle_encoder"])
    use_own_convolutions(encoder)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return encoder


class DenseEncoder:
    """Reference network on dense tensors [B, C, D, H, W] with a mask of the active voxels."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    def __call__(self, features: torch.Tensor, coords: torch.Tensor, batch: int) -> torch.Tensor:
        x = features.new_zeros(batch, *SHAPE, features.shape[1])
        x[tuple(coords.T)] = features
        active = features.new_zeros(batch, *SHAPE, 1)
        active[tuple(coords.T)] = 1
        x, active = x.movedim(-1, 1), active.movedim(-1, 1)
        for part in (self.encoder.conv_input, self.encoder.encoder_layers, self.encoder.conv_out):
            x, active = self.run(part, x, active)
        return x.flatten(1, 2)

    def run(
        self, module: Any, x: torch.Tensor, active: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(module, (SparseConv3d, SubMConv3d)):
            subm = isinstance(module, SubMConv3d)
            padding = [k // 2 for k in module.kernel_size] if subm else module.padding
            x = F.conv3d(x, module.weight.permute(0, 4, 1, 2, 3), None, module.stride, padding)
            if not subm:
                ones = torch.ones(1, 1, *module.kernel_size, dtype=x.dtype)
                reached = F.conv3d(active, ones, None, module.stride, padding)
                active = (reached > 0).to(x)
            return x * active, active
        if hasattr(module, "conv1"):
            out, _ = self.run(module.conv1, x, active)
            out = self.pointwise(module.bn1, out, active).relu()
            out, _ = self.run(module.conv2, out, active)
            return (self.pointwise(module.bn2, out, active) + x).relu(), active
        if not list(module.children()):
            return self.pointwise(module, x, active), active
        for child in module.children():
            x, active = self.run(child, x, active)
        return x, active

    def pointwise(self, module: Any, x: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        rows = x.movedim(1, -1)
        shape = rows.shape
        return module(rows.reshape(-1, shape[-1])).view(shape).movedim(-1, 1) * active


def test_encoder_equals_a_dense_one_with_any_number_of_threads() -> None:
    encoder = make_encoder().double().eval()
    features, coords, _ = make_voxelizer()([make_points(0).double(), make_points(1).double()])
    inputs = [features.requires_grad_(), *encoder.parameters()]
    expected = DenseEncoder(encoder)(features, coords, 2)
    upstream = torch.randn_like(expected)
    dense_grads = torch.autograd.grad((expected * upstream).sum(), inputs)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        actual = run_sparse_encoder(encoder, features, coords, 2)
        assert actual.shape == (2, 16, 30, 40) and actual.any()
        torch.testing.assert_close(actual, expected)
        grads = torch.autograd.grad((actual * upstream).sum(), inputs)
        for a, b in zip(grads, dense_grads, strict=True):
            torch.testing.assert_close(a, b)


def test_encoder_equals_mmdet3ds_own() -> None:
    """spconv's CPU code is correct on one thread (see conftest) and in training mode."""
    theirs = MODELS.build(LIDAR_BRANCH["pts_middle_encoder"]).train()
    ours = copy.deepcopy(theirs)
    use_own_convolutions(ours)
    own, their = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert {n: p.shape for n, p in own.items()} == {n: p.shape for n, p in their.items()}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(their[name])
    features, coords, _ = make_voxelizer()([make_points(0), make_points(1)])
    actual = run_sparse_encoder(ours, features, coords, 2)
    torch.testing.assert_close(actual, theirs(features, coords, 2), rtol=1e-4, atol=1e-4)


def test_no_voxel_gives_an_empty_map() -> None:
    features, coords, _ = make_voxelizer()([torch.zeros(0, 5)] * 2)
    out = run_sparse_encoder(make_encoder().eval(), features, coords, 2)
    assert out.shape == (2, 16, 30, 40) and not out.any()


def test_unknown_convolutions_are_refused() -> None:
    spconv = pytest.importorskip("spconv.pytorch")
    module = nn.Sequential(spconv.SubMConv3d(3, 3, 3, dilation=2))
    with pytest.raises(ValueError, match="is not supported"):
        use_own_convolutions(module)


def test_map_is_sampled_where_the_point_is() -> None:
    """Sampling a map of its pixels' x and y returns x and y of the points."""
    low_x, low_y, _, high_x, high_y, _ = PC_RANGE
    y, x = torch.meshgrid(
        torch.linspace(low_y, high_y, 7), torch.linspace(low_x, high_x, 9), indexing="ij"
    )
    groups = [torch.stack([x, y]) * scale for scale in (1, 10)]
    points = torch.rand(2, 5, 2, 3, 3) * torch.tensor([16.0, 12.0, 50.0]) - torch.tensor(
        [8.0, 6.0, 20.0]
    )
    maps = torch.cat(groups).expand(2, -1, -1, -1)
    sampled = bev_sampling(maps, points, torch.tensor(PC_RANGE))
    scale = torch.tensor([1.0, 10.0]).view(2, 1, 1)
    torch.testing.assert_close(sampled, points[..., :2] * scale)
    outside = torch.tensor([20.0, 0.0, 0.0]).expand(2, 5, 2, 3, 3)
    assert not bev_sampling(maps, outside, torch.tensor(PC_RANGE)).any()
