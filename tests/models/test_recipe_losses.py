"""Losses of new recipes against their definitions and against slow, direct formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import ModelConfigError
from models.heads import HeadOutput, VoxelLogits
from models.losses import LovaszSoftmaxLoss, OccupiedPoints, lovasz_loss
from models.losses.lovasz_loss import jaccard_weights
from tests.models.cases import (
    HEAD,
    NUM_CLASSES,
    POINT_HEAD,
    make_feats,
    make_geometry,
    make_sample,
    merge,
)

K = 3  # classes; the label 3 is free


def draw(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, K, generator=rng, dtype=torch.float64) * 2
    return logits, torch.randint(0, K + 1, (n,), generator=rng)


def mean(loss: LovaszSoftmaxLoss, logits: Tensor, labels: Tensor) -> Tensor:
    term = loss.term(logits, labels)
    return term.total / term.count


def test_hard_predictions_have_the_loss_of_their_iou() -> None:
    _, labels = draw(200)
    guess = draw(200, seed=1)[1]
    logits = F.one_hot(guess, K + 1)[:, :K].double() * 80 - 40
    expected = []
    for label in labels.unique():
        if label == K:
            continue
        truth, found = labels == label, guess == label
        expected.append(1 - (truth & found).sum() / (truth | found).sum())
    assert mean(LovaszSoftmaxLoss(), logits, labels).item() == pytest.approx(
        torch.stack(expected).mean().item()
    )


def test_soft_predictions_have_the_integral_over_thresholds() -> None:
    """The Lovász extension is the mean of the set function over all level sets."""
    logits, labels = draw(40)
    scores = F.pad(logits, (0, 1)).softmax(1)
    losses = []
    for label in range(K):
        truth = labels == label
        errors = torch.where(truth, 1 - scores[:, label], scores[:, label])
        levels = torch.cat([errors.unique(), torch.zeros(1, dtype=torch.float64)]).sort().values
        total = 0.0
        for low, high in pairwise(levels):
            wrong = errors >= high
            total += (high - low) * (1 - (truth & ~wrong).sum() / (truth | wrong).sum())
        losses.append(total)
    loss = mean(LovaszSoftmaxLoss(loss_weight=2.0), logits, labels)
    assert loss.item() == pytest.approx(2 * float(sum(losses)) / K)


def test_gradient_is_that_of_small_steps() -> None:
    logits, labels = draw(15)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mean(LovaszSoftmaxLoss(), x, labels), logits)


def test_classes_that_do_not_occur_and_unknown_voxels_do_not_count() -> None:
    loss = LovaszSoftmaxLoss()
    logits, labels = draw(30)
    labels[labels == 1] = K
    term = loss.term(logits, labels)
    assert term.count == 2
    known = torch.rand(30, generator=torch.Generator().manual_seed(2)) < 0.5
    logits.requires_grad_()
    part = loss.term(logits, labels, known)
    alone = loss.term(logits[known], labels[known])
    torch.testing.assert_close(part.total, alone.total)
    assert part.count == alone.count
    part.total.backward()
    assert logits.grad is not None and not logits.grad[~known].any() and logits.grad[known].any()


def test_errors_below_all_of_the_class_have_no_weight() -> None:
    """On the CPU they are not ranked."""
    rng = torch.Generator().manual_seed(0)
    errors = torch.rand(3, 500, generator=rng)
    is_class = torch.rand(3, 500, generator=rng) < torch.tensor([[0.5], [0.01], [0.9]])
    errors[1][is_class[1]] += 0.5
    weights = jaccard_weights(errors, is_class)
    torch.testing.assert_close(weights, lovasz_loss._weights_by_rank(errors, is_class))
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert not weights[1][errors[1] < 0.5].any() and (errors[1] < 0.5).sum() > 200


def test_a_logit_that_is_not_a_number_reaches_the_loss() -> None:
    logits, labels = draw(30)
    logits[3, 1] = math.nan
    assert LovaszSoftmaxLoss().term(logits, labels).total.isnan()


def test_nothing_is_zero_with_a_graph() -> None:
    logits = torch.zeros(0, K, requires_grad=True)
    term = LovaszSoftmaxLoss().term(logits, torch.zeros(0, dtype=torch.int64))
    term.total.backward()
    assert term.total == 0 and term.count == 0
    free = LovaszSoftmaxLoss().term(torch.randn(4, K), torch.full((4,), K))
    assert free.total == 0 and free.count == 0


def losses_of(head: Any, *seeds: int) -> dict[str, Tensor]:
    output = head(make_feats(len(seeds)), make_geometry(len(seeds)))
    return head.loss(output, [make_sample(seed) for seed in seeds])


def test_every_layer_gets_the_lovasz_loss(make_head: Callable[..., Any]) -> None:
    head = make_head(loss_lovasz=dict(type="LovaszSoftmaxLoss", loss_weight=0.5))
    output = head(make_feats(2), make_geometry(2))
    samples = [make_sample(seed) for seed in range(2)]
    losses = head.loss(output, samples)
    for name, voxels in zip(("d0.loss_lovasz", "loss_lovasz"), output.voxels, strict=True):
        total, count = 0.0, 0
        for i, sample in enumerate(samples):  # of all classes of all samples the mean
            mine = voxels.coords[:, 0] == i
            x, y, z = voxels.coords[mine, 1:].unbind(1)
            term = LovaszSoftmaxLoss(0.5).term(
                voxels.logits[mine], sample.voxel_semantics[x, y, z].long()
            )
            total, count = total + term.total, count + term.count
        torch.testing.assert_close(losses[name], (total / count).float())


def test_free_voxels_near_occupied_ones_weigh_less(make_head: Callable[..., Any]) -> None:
    head = make_head(near_negative_m=2.0)
    sample = make_sample(0, occupied=0.0)
    sample.voxel_semantics[1, 1, 1] = 2
    sample.voxel_semantics[5, 1, 1] = 255  # of unknown state: neither occupied nor scored
    coords = torch.tensor(
        [[0, 1, 1, 1], [0, 2, 1, 1], [0, 2, 2, 1], [0, 3, 1, 1], [0, 9, 9, 3], [0, 5, 1, 1]]
    )
    voxels = VoxelLogits(coords, torch.zeros(len(coords), NUM_CLASSES))
    point = torch.zeros(1, 1, 1, 3)
    losses = head.loss(HeadOutput(point, [point], [point], [voxels]), [sample])
    # Distances of 0.8 m, 0.8 * sqrt(2) m, 1.6 m and more than 2 m over 2 m.
    weights = 0.4 + 0.4 * math.sqrt(2) + 0.8 + 1
    negative, positive = 0.75 * 0.25 * math.log(2), 0.25 * 0.25 * math.log(2)
    expected = 2.0 * ((15 * weights + 12) * negative + 3 * positive)
    assert losses["loss_cls"].item() == pytest.approx(expected, rel=1e-5)


def test_distances_of_negatives_are_those_of_brute_force(make_head: Callable[..., Any]) -> None:
    head = make_head(near_negative_m=1.5)
    samples = [make_sample(0, occupied=0.02), make_sample(1, occupied=0.0), make_sample(2)]
    output = head(make_feats(3), make_geometry(3))
    voxels = output.voxels[-1]
    semantics = torch.stack([sample.voxel_semantics for sample in samples])
    labels = semantics[tuple(voxels.coords.T)].long()
    targets: list[OccupiedPoints] = head.occupied_points(semantics, samples)
    weights = head._negative_weights(voxels, labels, targets)
    for i, gt in enumerate(targets):
        mine = voxels.coords[:, 0] == i
        expected = torch.ones(int(mine.sum()))
        if len(gt.points):
            distance = torch.cdist(head.voxel_centres(voxels.coords[mine, 1:]), gt.points)
            expected = torch.where(
                labels[mine] == NUM_CLASSES, (distance.amin(1) / 1.5).clamp(max=1), expected
            )
        torch.testing.assert_close(weights[mine], expected, atol=1e-5, rtol=1e-4)


def test_location_loss_of_the_initial_points_alone(make_head: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    head = make_head(loss_pts_on="initial")
    torch.manual_seed(0)
    published = losses_of(make_head(), 0, 1)
    losses = losses_of(head, 0, 1)
    assert list(losses) == ["init_loss_pts", "loss_cls", "d0.loss_cls"]
    for name, value in losses.items():
        torch.testing.assert_close(value, published[name])
    sum(losses.values()).backward()
    without = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    torch.manual_seed(0)
    head = make_head()
    sum(losses_of(head, 0, 1).values()).backward()
    before = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == before  # points learn through the discretization


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        (POINT_HEAD, dict(loss_pts_on="initial"), "PointHead needs the location loss"),
        (HEAD, dict(loss_pts_on="initial", use_lidar=True), "leaves a model with LiDAR without"),
        (HEAD, dict(near_negative_m=0.0), "near_negative_m is 0.0"),
        (HEAD, dict(num_seen_queries=11), "take 11 of num_query=10"),
        (HEAD, dict(num_seen_points=-1), "num_seen_points is -1"),
        (HEAD, dict(seen_level=3), "seen_level is 3: use an index of the 3 feature maps"),
        (
            HEAD,
            dict(num_seen_queries=6, memory=dict(type="QueryMemory", num_kept=5)),
            "take 11 of num_query=10",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    base: dict[str, Any], changes: dict[str, Any], words: str, make_head: Callable[..., Any]
) -> None:
    with pytest.raises(ModelConfigError, match=words):
        make_head(base=merge(base), **changes)
