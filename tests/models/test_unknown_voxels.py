"""Voxels of unknown state are no target of a loss, and predictions inside get no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from models.heads import CameraGeometry, FirstHitHead
from models.heads.labels import UNKNOWN_LABEL
from tests.models.cases import (
    GRID,
    HEAD,
    NUM_CLASSES,
    PC_RANGE,
    POINT_HEAD,
    VOXEL_SIZE,
    make_feats,
    make_geometry,
    make_sample,
)

HEADS = {"points": POINT_HEAD, "voxels": HEAD}


def with_unknown(seed: int, unknown: Tensor, hidden: int = UNKNOWN_LABEL) -> BaseDataElement:
    sample = make_sample(seed)
    sample.voxel_semantics[unknown] = hidden
    return sample


def voxel_of(points: Tensor) -> Tensor:
    """Return the clamped voxel (x, y, z) of points [n, 3], metres."""
    index = ((points - torch.tensor(PC_RANGE[:3])) / torch.tensor(VOXEL_SIZE)).floor().long()
    return torch.minimum(index.clamp(min=0), torch.tensor(GRID) - 1)


@pytest.mark.parametrize("kind", HEADS)
def test_what_the_unknown_voxels_hold_does_not_matter(
    make_head: Callable[..., Any], kind: str
) -> None:
    """The labels of unknown voxels are replaced by the mark."""
    torch.manual_seed(0)
    head = make_head(HEADS[kind]).train()
    unknown = torch.rand(GRID) < 0.3
    output = head(make_feats(2), make_geometry(2))
    first = with_unknown(1, unknown), make_sample(2)
    losses = head.loss(output, first)
    assert all(loss.isfinite() for loss in losses.values())
    # Unknown is neither free nor occupied: both readings give other losses.
    for hidden in (NUM_CLASSES, 0):
        other = head.loss(output, (with_unknown(1, unknown, hidden), make_sample(2)))
        assert any(not torch.equal(other[name], losses[name]) for name in losses)


@pytest.mark.parametrize("kind", HEADS)
def test_predictions_in_unknown_voxels_get_no_gradient(
    make_head: Callable[..., Any], kind: str
) -> None:
    torch.manual_seed(1)
    head = make_head(HEADS[kind]).train()
    output = head(make_feats(1), make_geometry(1))
    # Unknown: all voxels that half of the last layer's points lie in.
    points = head.denormalise(output.points[-1].detach())[0].flatten(0, 1)
    voxel = voxel_of(points)
    unknown = torch.zeros(GRID, dtype=torch.bool)
    unknown[tuple(voxel[: len(voxel) // 2].T)] = True
    inside = unknown[tuple(voxel.T)]
    low, high = torch.tensor(PC_RANGE).view(2, 3)
    inside &= ((points >= low) & (points < high)).all(1)
    assert 0 < inside.sum() < len(inside)
    losses = head.loss(output, [with_unknown(3, unknown)])
    if kind == "points":
        logits = output.point_feats[-1]
        (grad,) = torch.autograd.grad(losses["loss_cls"], logits)
        grad = grad[0].flatten(0, 1)
        assert not grad[inside].any() and grad[~inside].any(1).all()
    else:
        voxels = output.voxels[-1]
        (grad,) = torch.autograd.grad(losses["loss_cls"], voxels.logits)
        x, y, z = voxels.coords[:, 1:].unbind(1)
        hidden = unknown[x, y, z]
        assert hidden.any() and not grad[hidden].any() and grad[~hidden].any(1).all()


def test_a_scene_of_nothing_but_unknown_voxels(make_head: Callable[..., Any]) -> None:
    for base in HEADS.values():
        head = make_head(base).train()
        output = head(make_feats(1), make_geometry(1))
        losses = head.loss(output, [with_unknown(0, torch.ones(GRID, dtype=torch.bool))])
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()


@pytest.mark.parametrize("kind", HEADS)
def test_without_unknown_voxels_nothing_changes(make_head: Callable[..., Any], kind: str) -> None:
    """A mark in a distant free voxel does not change the losses."""
    torch.manual_seed(2)
    head = make_head(HEADS[kind]).train()
    output = head(make_feats(1), make_geometry(1))
    sample = make_sample(5)
    plain = head.loss(output, [sample])
    taken = torch.zeros(GRID, dtype=torch.bool)
    for points in (output.init_points, *output.points):
        taken[tuple(voxel_of(head.denormalise(points.detach()).view(-1, 3)).T)] = True
    for voxels in output.voxels:
        if voxels is not None:
            taken[tuple(voxels.coords[:, 1:].T)] = True
    free = torch.nonzero((sample.voxel_semantics == NUM_CLASSES) & ~taken)
    assert len(free)
    sample.voxel_semantics[tuple(free[0])] = UNKNOWN_LABEL
    for name, loss in head.loss(output, [sample]).items():
        torch.testing.assert_close(loss, plain[name])


def test_rays_of_the_first_hit_that_end_in_unknown_voxels() -> None:
    torch.manual_seed(0)
    head = FirstHitHead(
        in_channels=8,
        num_classes=NUM_CLASSES,
        empty_label=NUM_CLASSES,
        pc_range=PC_RANGE,
        voxel_size=VOXEL_SIZE,
    )
    geometry = make_geometry(1)
    maps = [torch.randn(1, geometry.ego2img.shape[1], 8, 4, 6, requires_grad=True)]
    sample = make_sample(0, occupied=0.01)
    sample.voxel_semantics[12:] = UNKNOWN_LABEL
    num_cams = 6
    size = (4, 6)
    cameras = CameraGeometry(geometry.ego2img, geometry.ego2occ, geometry.img_hw).occ2img()
    classes, _ = head.targets(sample.voxel_semantics, cameras[0, :num_cams], geometry.img_hw, size)
    hidden = classes == UNKNOWN_LABEL
    assert hidden.any() and (~hidden).any()
    losses = head.loss(maps, geometry, [sample], num_cams)
    logits = head.predictor(maps[0][:, :num_cams].flatten(0, 1)).permute(0, 2, 3, 1)
    logits = logits[..., : NUM_CLASSES + 1]
    by_hand = torch.nn.functional.cross_entropy(logits[~hidden], classes[~hidden])
    torch.testing.assert_close(losses["img.loss_cls"], by_hand)
    (grad,) = torch.autograd.grad(sum(losses.values()), maps)
    assert not grad[0, :num_cams].movedim(1, -1)[hidden].any()
    sample.voxel_semantics[:] = UNKNOWN_LABEL
    losses = head.loss(maps, geometry, [sample], num_cams)
    assert all(loss.isfinite() for loss in losses.values())
