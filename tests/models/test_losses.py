"""Losses against numbers worked out by hand and against slow, direct formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.losses import ChamferLoss, OccupiedPoints, SigmoidFocalLoss


def occupied(points: list[list[float]], labels: list[int], visible: list[bool]) -> OccupiedPoints:
    return OccupiedPoints(
        torch.tensor(points, dtype=torch.float64).view(-1, 3),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(visible, dtype=torch.bool),
    )


def points(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def test_chamfer_of_one_pair_by_hand() -> None:
    # |d| = 1 > beta in x: 1 - 0.1 = 0.9; d = 0.1 < beta in y: 0.5 * 0.01 / 0.2 = 0.025
    pred, gt = points([1.0, 0.1, 0.0]), occupied([[0.0, 0.0, 0.0]], [1], [False])
    loss = ChamferLoss(loss_weight=0.5)([pred], [gt])
    assert loss.item() == pytest.approx(0.5 * (0.925 + 0.925))


def test_weights_of_ground_truth_points() -> None:
    # Four pairs 10 m apart from each other; within a pair the distance is 1 m (term 0.9) or
    # 0.1 m (term 0.025). Only the direction from the ground truth is weighted.
    pred = points([0.0, 0, 0], [10.0, 0, 0], [20.0, 0, 0], [30.0, 0, 0])
    gt = occupied(
        [[1.0, 0, 0], [11.0, 0, 0], [20.1, 0, 0], [31.0, 0, 0]],
        [1, 1, 2, 0],
        [True, False, True, True],
    )
    loss = ChamferLoss(loss_weight=1.0)([pred], [gt])
    # far and seen: 5; far, not seen: 1; near but rare (class 2) and seen: 10; far, rare, seen: 10
    from_gt = (5 * 0.9 + 1 * 0.9 + 10 * 0.025 + 10 * 0.9) / 4
    from_pred = (3 * 0.9 + 0.025) / 4
    assert loss.item() == pytest.approx(from_gt + from_pred)


def test_rare_weight_does_not_lower_a_larger_far_weight() -> None:
    pred, gt = points([0.0, 0, 0]), occupied([[1.0, 0, 0]], [2], [True])
    loss = ChamferLoss(loss_weight=1.0, far_weight=20.0, rare_weight=10.0)([pred], [gt])
    assert loss.item() == pytest.approx(20 * 0.9 + 0.9)


def test_density_aware_divides_by_the_number_of_sharers() -> None:
    # Two ground-truth points share prediction 0, one has prediction 1 to itself.
    pred = points([0.0, 0, 0], [10.0, 0, 0])
    gt = occupied([[1.0, 0, 0], [-1.0, 0, 0], [10.1, 0, 0]], [1, 1, 1], [False] * 3)
    loss = ChamferLoss(loss_weight=1.0, density_aware=True)([pred], [gt])
    from_gt = (0.9 / 2 + 0.9 / 2 + 0.025) / (0.5 + 0.5 + 1.0)
    from_pred = (0.9 + 0.025) / 2  # prediction 0 ties between gt 0 and 1
    assert loss.item() == pytest.approx(from_gt + from_pred)


def test_batch_is_averaged_over_all_its_points() -> None:
    near = (points([0.1, 0, 0]), occupied([[0.0, 0, 0]], [1], [False]))
    far = (
        points([1.0, 0, 0], [11.0, 0, 0]),
        occupied([[0.0, 0, 0], [10.0, 0, 0]], [1, 1], [False, False]),
    )
    loss = ChamferLoss(loss_weight=1.0)([near[0], far[0]], [near[1], far[1]])
    assert loss.item() == pytest.approx(2 * (0.025 + 0.9 + 0.9) / 3)


def test_gradient_reaches_each_point_from_both_directions() -> None:
    pred = points([1.0, 0.0, 0.0])
    ChamferLoss(loss_weight=1.0)([pred], [occupied([[0.0, 0, 0]], [1], [False])]).backward()
    assert pred.grad is not None
    # slope 1 in x beyond beta, once from each direction
    assert torch.equal(pred.grad, torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("density_aware", [False, True])
def test_ties_take_the_lowest_index(density_aware: bool) -> None:
    pred = points([1.0, 0, 0], [-1.0, 0, 0])
    loss = ChamferLoss(loss_weight=1.0, density_aware=density_aware)
    loss([pred], [occupied([[0.0, 0, 0]], [1], [False])]).backward()
    assert pred.grad is not None
    # from the ground truth only prediction 0 is pulled; from the predictions both, by half each
    assert pred.grad[:, 0].tolist() == [1.5, -0.5]


@pytest.mark.parametrize("density_aware", [False, True])
def test_empty_ground_truth_is_zero_with_a_graph(density_aware: bool) -> None:
    pred = points([1.0, 2.0, 3.0])
    loss = ChamferLoss(density_aware=density_aware)([pred], [occupied([], [], [])])
    loss.backward()
    assert loss.item() == 0.0
    assert pred.grad is not None and torch.equal(pred.grad, torch.zeros_like(pred))


def test_empty_sample_does_not_change_the_others() -> None:
    pair = (points([1.0, 0, 0]), occupied([[0.0, 0, 0]], [1], [True]))
    alone = ChamferLoss()([pair[0]], [pair[1]])
    with_empty = ChamferLoss()([points([5.0, 5, 5]), pair[0]], [occupied([], [], []), pair[1]])
    assert with_empty.item() == alone.item()


def test_huge_coordinates_stay_finite_where_the_ground_truth_is_empty() -> None:
    pred = torch.full((3, 3), torch.finfo(torch.float32).max, requires_grad=True)
    assert ChamferLoss()([pred], [occupied([], [], [])]).item() == 0.0


def test_chamfer_equals_a_direct_formula_in_batches() -> None:
    gts = [torch.randn(7, 3).double(), torch.randn(4, 3).double()]
    preds = [torch.randn(5, 3).double(), torch.randn(6, 3).double()]
    targets = [
        OccupiedPoints(g, torch.ones(len(g)).long(), torch.zeros(len(g)).bool()) for g in gts
    ]
    sums, counts = [0.0, 0.0], [0, 0]
    for pred, gt in zip(preds, gts, strict=True):
        nearest = torch.cdist(gt, pred)
        for k, (a, b, i) in enumerate(
            ((gt, pred, nearest.argmin(1)), (pred, gt, nearest.argmin(0)))
        ):
            sums[k] += F.smooth_l1_loss(a, b[i], beta=0.2, reduction="sum").item()
            counts[k] += len(a)
    expected = 0.5 * (sums[0] / counts[0] + sums[1] / counts[1])
    assert ChamferLoss()(preds, targets).item() == pytest.approx(expected)


def focal_reference(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the summed loss from the definition FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t)."""
    target = F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits)
    p = logits.sigmoid()
    p_t = torch.where(target == 1, p, 1 - p)
    alpha_t = torch.where(target == 1, 0.25, 0.75)
    return (weights * -alpha_t * (1 - p_t) ** 2 * p_t.log()).sum()


def test_focal_loss_equals_its_definition_with_gradient() -> None:
    logits = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 5, (20,))  # 4: background
    weights = [1.0, 2.0, 5.0, 0.5]
    loss = SigmoidFocalLoss(class_weights=weights, loss_weight=2.0)(logits, labels, 3)
    expected = 2.0 * focal_reference(logits, labels, torch.tensor(weights).double()) / 3
    assert loss.item() == pytest.approx(expected.item())
    (actual_grad,) = torch.autograd.grad(loss, logits)
    (expected_grad,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(actual_grad, expected_grad)


def test_focal_loss_of_confident_logits_is_finite() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = SigmoidFocalLoss()(logits, torch.tensor([1, 1]), 1.0)
    loss.backward()
    # row 0: wrong twice: 0.75 * 1e4 (class 0 negative) + 0.25 * 1e4 (class 1 positive)
    assert loss.item() == pytest.approx(1e4)
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_focal_loss_of_nothing_is_zero_with_a_graph() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = SigmoidFocalLoss()(logits, torch.zeros(0).long(), 1.0)
    loss.backward()
    assert loss.item() == 0.0


def test_wrong_number_of_class_weights_is_named() -> None:
    loss = SigmoidFocalLoss(class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="class_weights has 2 entries for 3 classes"):
        loss(torch.zeros(1, 3), torch.zeros(1).long(), 1.0)
