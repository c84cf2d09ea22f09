"""Chamfer losses between predicted points and the centres of occupied voxels.

Dimension letters: N predicted points of a sample, M ground-truth points of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from models import ops

from .normalizer import LossTerm, normalize_alone


class Match(NamedTuple):
    """Nearest neighbours between a sample's predictions and ground truth, in both directions.

    Attributes:
        to_gt: int64 `[N]`, index of the ground-truth point nearest to each prediction.
        to_pred: int64 `[M]`, index of the prediction nearest to each ground-truth point.
        squared_distance: `[M]`, squared distance to that prediction in square metres.
    """

    to_gt: Tensor
    to_pred: Tensor
    squared_distance: Tensor


@dataclass(eq=False)
class OccupiedPoints:
    """Ground truth of one sample as a set of points.

    Attributes:
        points: `[M, 3]` centres of the occupied voxels, metres of the occ frame.
        labels: int64 `[M]` classes.
        visible: bool `[M]`, whether a camera sees the voxel.
    """

    points: Tensor
    labels: Tensor
    visible: Tensor
    _trees: dict[tuple[torch.dtype, torch.device], ops.PointTree] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def tree(self, like: Tensor) -> ops.PointTree:
        """Return a search tree of the points with the dtype and device of `like`.

        The tree is built once; the initial points and all layers of a training step share it.
        """
        key = (like.dtype, like.device)
        if key not in self._trees:
            self._trees[key] = ops.PointTree(self.points.to(like))
        return self._trees[key]

    def match(self, points: Tensor) -> Match | None:
        """Match predicted points `[N, 3]`, N >= 1; return None if there is no ground truth."""
        if not len(self.points):
            return None
        gt, pred = self.tree(points), ops.PointTree(points)
        return Match(gt.nearest(pred)[0], *pred.nearest(gt))


@MODELS.register_module()
class ChamferLoss(nn.Module):
    """Two-way nearest-neighbour distance of point sets (OPUS, arXiv 2409.09350).

    The distance of a pair is SmoothL1 summed over x, y, z. In the direction from ground truth to
    predictions, two kinds of visible points have larger weights: points far from any prediction
    and points of rare classes. Both directions are averaged over all points of the batch. A
    `LossNormalizer` sets whether this is the batch of one process or of all processes.

    Args:
        beta: Distance in metres at which SmoothL1 changes from quadratic to linear.
        loss_weight: Factor of the result.
        density_aware: Weight every term by the reciprocal of the number of points that share its
            nearest neighbour, and divide by the sum of these weights (after Wu et al., arXiv
            2111.12702).
        far_distance_m: Beyond this distance to its nearest prediction a visible ground-truth point
            gets `far_weight`.
        far_weight: See `far_distance_m`.
        rare_classes: Visible ground-truth points of these classes get at least `rare_weight`.
        rare_weight: See `rare_classes`.
    """

    rare_labels: Tensor

    def __init__(
        self,
        beta: float = 0.2,
        loss_weight: float = 0.5,
        density_aware: bool = False,
        far_distance_m: float = 0.2,
        far_weight: float = 5.0,
        rare_classes: Sequence[int] = (0, 2, 5, 8),
        rare_weight: float = 10.0,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.loss_weight = loss_weight
        self.density_aware = density_aware
        self.far_distance_m = far_distance_m
        self.far_weight = far_weight
        self.register_buffer("rare_labels", torch.tensor(rare_classes).long(), persistent=False)
        self.rare_weight = rare_weight

    def forward(
        self,
        points: Sequence[Tensor],
        targets: Sequence[OccupiedPoints],
        matched: Sequence[Match | None] | None = None,
        counted: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the loss of a batch on one process: the sum of the means of `terms`.

        Arguments and shapes are those of `terms`.
        """
        return normalize_alone({"loss": self.terms(points, targets, matched, counted)})["loss"]

    def terms(
        self,
        points: Sequence[Tensor],
        targets: Sequence[OccupiedPoints],
        matched: Sequence[Match | None] | None = None,
        counted: Sequence[Tensor] | None = None,
    ) -> list[LossTerm]:
        """Return the sums and counts of both directions: ground truth to predictions, and back.

        Args:
            points: Predicted points `[N, 3]` of every sample, metres of the occ frame.
            targets: Ground truth of every sample; samples without a point are skipped.
            matched: Results of `OccupiedPoints.match` for `points`, if already computed.
            counted: Per sample bool `[N]`, which predictions have their own term; None for all.
                The others may still be the nearest prediction of a ground-truth point.

        Returns:
            Two terms. The second one's graph includes every predicted point. Both are zero if no
            sample has a ground-truth point.
        """
        # An empty slice keeps the graph and, unlike a product with zero, cannot produce NaN.
        nothing = torch.stack([pred[:0].sum() for pred in points]).sum()
        none = nothing.new_zeros((), dtype=torch.float64)
        to_pred, to_gt = [LossTerm(nothing, none)], [LossTerm(nothing, none)]
        if matched is None:
            matched = [gt.match(pred) for pred, gt in zip(points, targets, strict=True)]
        everyone: list[Tensor | None] = [None] * len(points)
        rows = zip(points, targets, matched, counted or everyone, strict=True)
        for pred, gt, match, mask in rows:
            if match is None:
                continue
            centres = gt.tree(pred).points
            weights = self._gt_weights(gt, match.squared_distance)
            to_pred.append(self._one_way(centres, pred, match.to_pred, weights))
            to_gt.append(self._one_way(pred, centres, match.to_gt, counted=mask))
        return [self._sum(to_pred), self._sum(to_gt)]

    def _sum(self, parts: Sequence[LossTerm]) -> LossTerm:
        total = torch.stack([part.total for part in parts]).sum()
        return LossTerm(self.loss_weight * total, torch.stack([part.count for part in parts]).sum())

    def _one_way(
        self,
        query: Tensor,
        reference: Tensor,
        index: Tensor,
        weights: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> LossTerm:
        """Return the sum of the distances from query to reference, and its divisor."""
        terms = ops.chamfer_terms(query, reference, index, self.beta)
        share: Tensor | None = None
        count = terms.new_full((), len(terms), dtype=torch.float64)
        if self.density_aware:
            # `bincount` would synchronise with the device.
            sharing = index.new_zeros(len(reference)).index_add_(0, index, torch.ones_like(index))
            share = sharing[index].to(terms).reciprocal()
            count = share.sum().double()
        if counted is not None:
            share = counted.to(terms) if share is None else share * counted
            count = share.sum().double()
        for factor in (weights, share):
            if factor is not None:
                terms = terms * factor
        return LossTerm(terms.sum(), count)

    def _gt_weights(self, gt: OccupiedPoints, squared_distance: Tensor) -> Tensor:
        far = gt.visible & (squared_distance > self.far_distance_m**2)
        # torch.isin sorts and is slower
        rare = (gt.labels[:, None] == self.rare_labels).any(1) & gt.visible
        # Indexing by a mask would synchronise with the GPU in every layer.
        weights = torch.ones_like(squared_distance).masked_fill(far, self.far_weight)
        return torch.where(rare, weights.clamp(min=self.rare_weight), weights)
