"""The head of OPUS-V1: matching, weights, post-processing, batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from models.heads import HeadOutput, PointHead
from models.heads.point_head import closing
from models.losses import OccupiedPoints
from tests.models.cases import (
    GRID,
    NUM_CLASSES,
    PC_RANGE,
    POINT_HEAD,
    make_feats,
    make_geometry,
    make_sample,
)


@pytest.fixture
def point_head(make_head: Callable[..., Any]) -> PointHead:
    head: PointHead = make_head(base=POINT_HEAD)
    return head


def output_of(points_m: torch.Tensor, scores: torch.Tensor, head: PointHead) -> HeadOutput:
    """Return outputs of one layer with points [B, Q, R, 3], metres, and scores [B, Q, R, K]."""
    points = head.normalise(points_m)
    return HeadOutput(points[:, :, :1], [points], [torch.logit(scores)], [None])


def predict_one(points: list[list[float]], scores: list[float], head: PointHead) -> Any:
    """Predict points, one per query, with these scores of class 1."""
    values = torch.full((1, len(points), 1, NUM_CLASSES), 0.01)
    values[0, :, 0, 1] = torch.tensor(scores)
    output = output_of(torch.tensor(points).view(1, -1, 1, 3), values, head)
    return head.predict(output, [make_sample(0)])[0]


def test_closing_equals_a_loop() -> None:
    volume = torch.rand(2, 4, 5, 3)

    def window(x: torch.Tensor, take: str) -> torch.Tensor:
        out = torch.empty_like(x)
        for i in range(4):
            for j in range(5):
                for k in range(3):
                    low = [max(n - 1, 0) for n in (i, j, k)]
                    box = x[:, low[0] : i + 2, low[1] : j + 2, low[2] : k + 2]
                    out[:, i, j, k] = getattr(box.flatten(1), take)(1)
        return out

    assert torch.equal(closing(volume), window(window(volume, "amax"), "amin"))


def test_voxel_score_is_the_mean_of_its_confident_points(point_head: PointHead) -> None:
    point_head.padding = False
    a, b, outside = [0.1, 0.1, 0.1], [0.2, 0.3, 0.2], [0.1, 0.1, 5.0]
    found = predict_one([a, b, a, outside], [0.6, 0.9, 0.4, 0.9], point_head)
    assert found.pred_coords.tolist() == [[10, 7, 1]] and found.pred_labels.tolist() == [1]
    # the point of score 0.4 does not count
    torch.testing.assert_close(found.pred_scores, torch.tensor([0.75]))


def test_points_far_from_their_query_are_dropped(point_head: PointHead) -> None:
    point_head.padding = False
    scores = torch.full((1, 1, 3, NUM_CLASSES), 0.9)
    for far, voxels in ((4.4, [[10, 7, 1], [15, 7, 1]]), (4.6, [[10, 7, 1]])):
        # two thirds of this from the centre of the three points: 2.93 and 3.07 m
        points = torch.tensor([[0.0, 0, 0], [0.0, 0, 0], [far, 0, 0]]).view(1, 1, 3, 3)
        (found,) = point_head.predict(output_of(points, scores, point_head), [make_sample(0)])
        assert found.pred_coords.tolist() == voxels


def test_padding_fills_gaps_and_keeps_known_scores(point_head: PointHead) -> None:
    cube = torch.cartesian_prod(*[torch.arange(3)] * 3) + torch.tensor([9, 7, 0])
    ring = [voxel for voxel in cube.tolist() if voxel != [10, 8, 1]]
    centres = point_head.voxel_centres(torch.tensor(ring)).tolist()
    scores = [0.8 if i % 2 else 0.9 for i in range(len(ring))]
    found = predict_one(centres, scores, point_head)
    coords = found.pred_coords.tolist()
    by_voxel = dict(zip(map(tuple, coords), found.pred_scores.tolist(), strict=True))
    # what lies outside does not count: the layer up to the border is a gap as well
    border = {voxel: by_voxel.pop(voxel) for voxel in list(by_voxel) if voxel[2] == 3}
    assert len(border) == 9
    # each voxel keeps its score; the hole gets the least of the largest scores around
    expected = dict(zip(map(tuple, ring), scores, strict=True)) | {(10, 8, 1): 0.9}
    assert by_voxel == pytest.approx(expected)
    point_head.padding = False
    assert len(predict_one(centres, scores, point_head).pred_coords) == 26


def test_match_takes_the_nearest_label_and_weighs_distance(point_head: PointHead) -> None:
    gt = OccupiedPoints(
        torch.tensor([[0.0, 0.0, 0.0], [6.0, 4.5, 0.0]]),
        torch.tensor([3, 1]),
        torch.ones(2, dtype=torch.bool),
    )
    points = torch.tensor([[0.5, 0.0, 1.0], [8.0, 6.0, 0.0], [5.0, 4.0, 0.0]])
    labels, weights = point_head._labels(points, gt, gt.match(points))
    assert labels.tolist() == [3, 1, 1]
    diagonal = math.hypot(PC_RANGE[3] - PC_RANGE[0], PC_RANGE[4] - PC_RANGE[1])
    expected = torch.tensor([1.0, 1 + 7.5 / diagonal, 1 + 7.5 / diagonal])
    torch.testing.assert_close(weights, expected)


def test_empty_ground_truth_and_empty_prediction(point_head: PointHead) -> None:
    head = point_head.train()
    losses = head.loss(head(make_feats(1), make_geometry(1)), [make_sample(0, occupied=0.0)])
    assert losses["loss_pts"] == 0 and losses["loss_cls"] > 0
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    head.eval()
    (sample,) = head.predict(head(make_feats(1), make_geometry(1)), [make_sample(0)])
    assert sample.pred_coords.shape == (0, 3)  # scores start at 0.01
    assert sample.pred_labels.shape == sample.pred_scores.shape == (0,)


def test_batch_of_two_equals_two_batches_of_one(point_head: PointHead) -> None:
    head = point_head.double().eval()
    last = head.transformer["decoder"].decoder_layers[-1].cls_branch[-1]
    torch.nn.init.normal_(last.bias)
    feats = make_feats(2, dtype=torch.float64)
    with torch.no_grad():
        both = head.predict(
            head(feats, make_geometry(2, torch.float64)), [make_sample(0), make_sample(1)]
        )
        for i in range(2):
            output = head([x[i : i + 1] for x in feats], make_geometry(1, torch.float64))
            (one,) = head.predict(output, [make_sample(i)])
            assert len(one.pred_coords) > 0
            assert torch.equal(one.pred_coords, both[i].pred_coords)
            assert torch.equal(one.pred_labels, both[i].pred_labels)
            torch.testing.assert_close(one.pred_scores, both[i].pred_scores)


def test_losses_of_equal_samples_do_not_depend_on_the_batch(point_head: PointHead) -> None:
    head = point_head.double().train()
    feats = make_feats(1, dtype=torch.float64)
    samples = [make_sample(0), make_sample(0)]
    one = head.loss(head(feats, make_geometry(1, torch.float64)), samples[:1])
    doubled = [torch.cat([level, level]) for level in feats]
    two = head.loss(head(doubled, make_geometry(2, torch.float64)), samples)
    assert list(two) == ["init_loss_pts", "loss_cls", "loss_pts", "d0.loss_cls", "d0.loss_pts"]
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)


def test_another_grid_needs_no_other_weights(make_head: Callable[..., Any]) -> None:
    coarse = make_head(base=POINT_HEAD)
    fine = make_head(base=POINT_HEAD, voxel_size=[0.4, 0.4, 0.4])
    fine.load_state_dict(coarse.state_dict(), strict=True)
    assert fine.grid_shape == tuple(2 * n for n in GRID)
    points = torch.tensor([0.1, 0.1, 0.1]).view(1, 1, 1, 3)
    scores = torch.full((1, 1, 1, NUM_CLASSES), 0.9)
    (found,) = fine.predict(output_of(points, scores, fine), [make_sample(0)])
    assert found.pred_coords.tolist() == [[20, 15, 2]]


def test_class_logits_start_at_the_prior(point_head: PointHead) -> None:
    for layer in point_head.transformer["decoder"].decoder_layers:
        bias = layer.cls_branch[-1].bias
        torch.testing.assert_close(bias, torch.full_like(bias, -math.log(99)))
