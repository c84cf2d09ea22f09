"""The head of OPUS-V1: classified points, turned into voxels without learning.

Dimension letters as in `models/heads/base.py`; K classes, n points kept, V voxels with a point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor

from models.decoder import DecoderOutput
from models.errors import ModelConfigError
from models.losses import LossTerm, Match, OccupiedPoints

from .base import OccupancyHead
from .densifier import VoxelLogits
from .interface import HeadOutput, MatchedLayer
from .results import Candidates, bring_back

_ROWS_NOT_KEPT = 1024


@MODELS.register_module()
class PointHead(OccupancyHead):
    """Head that classifies every point (OPUS, arXiv 2409.09350).

    Args:
        score_thr: Points, and then voxels, whose best score is not above this are dropped.
        max_spread_m: Points at this distance or more from the centre of their query's points are
            not predicted.
        padding: Whether a morphological closing of the scores fills gaps between voxels.
        **kwargs: Arguments of `OccupancyHead`.
    """

    def __init__(
        self,
        score_thr: float = 0.5,
        max_spread_m: float = 3.0,
        padding: bool = True,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("loss_pts_on") == "initial":
            raise ModelConfigError(
                "PointHead needs the location loss of every layer to train its points: set "
                "loss_pts_on='all'."
            )
        super().__init__(point_channels=kwargs["num_classes"], score_thr=score_thr, **kwargs)
        self.max_spread_m = max_spread_m
        self.padding = padding

    @torch.no_grad()
    def predict(
        self, output: HeadOutput, data_samples: Sequence[BaseDataElement]
    ) -> list[BaseDataElement]:
        """See `OccupancyHead.predict`."""
        logits = output.point_feats[-1]
        assert logits is not None
        points = self.denormalise(output.points[-1])
        if points.device.type != "cpu":
            return self._predict_on_device(points, logits, data_samples)
        for sample, own_points, own_logits in zip(data_samples, points, logits, strict=True):
            scores = self._voxel_scores(own_points, own_logits.sigmoid())
            best, labels = scores.max(0)  # [X, Y, Z]
            coords = torch.nonzero(best > self.score_thr)
            x, y, z = coords.unbind(1)
            sample.pred_coords = coords
            sample.pred_labels = labels[x, y, z]
            sample.pred_scores = best[x, y, z]
        return list(data_samples)

    def _predict_on_device(
        self, points: Tensor, logits: Tensor, data_samples: Sequence[BaseDataElement]
    ) -> list[BaseDataElement]:
        """Predict with one synchronisation; the predictions are on the host."""
        best, labels = [], []
        for own_points, own_logits in zip(points, logits, strict=True):
            score, label = self._voxel_scores(own_points, own_logits.sigmoid()).max(0)
            best.append(score.flatten())
            labels.append(label.flatten())
        scores = torch.stack(best)
        number = torch.arange(scores.numel(), device=scores.device)
        volume = scores.shape[1]
        candidates = Candidates(
            scores.flatten() > self.score_thr,
            number.div(volume, rounding_mode="floor"),
            number.remainder(volume),
            torch.cat(labels),
            scores.flatten(),
        )
        found, _ = bring_back(candidates, len(data_samples), self.grid_shape)
        for sample, predicted in zip(data_samples, found, strict=True):
            sample.pred_coords, sample.pred_labels, sample.pred_scores = predicted
        return list(data_samples)

    def _voxel_scores(self, points: Tensor, scores: Tensor) -> Tensor:
        """Return scores `[K, X, Y, Z]` of a sample's points `[Q, R, 3]`, `[Q, R, K]`."""
        spread = (points - points.mean(1, keepdim=True)).norm(dim=-1)
        keep = (spread < self.max_spread_m) & (scores.amax(-1) > self.score_thr)
        x_num, y_num, z_num = self.grid_shape
        volume = x_num * y_num * z_num
        if points.device.type == "cpu":  # most points are not kept
            points, scores, keep = points[keep], scores[keep], keep[keep]
        else:  # indexing by a mask would synchronise
            points, scores, keep = points.flatten(0, 1), scores.flatten(0, 1), keep.flatten()
        index = torch.floor(self.normalise(points) * self.voxel_num)
        keep = keep & ((index >= 0) & (index < self.voxel_num)).all(1)
        x, y, z = torch.where(keep[:, None], index, 0).long().unbind(1)
        # Dropped points are added to many extra rows, since a GPU serialises additions to one row.
        nowhere = volume + torch.arange(keep.shape[0], device=keep.device) % _ROWS_NOT_KEPT
        voxel = torch.where(keep, (x * y_num + y) * z_num + z, nowhere)
        # The last column counts the points of a voxel.
        rows = torch.cat([scores, torch.ones_like(scores[:, :1])], dim=1)
        total = rows.new_zeros(volume + _ROWS_NOT_KEPT, self.num_classes + 1)
        total = total.scatter_add_(0, voxel[:, None].expand(rows.shape), rows)[:volume]
        mean = (total[:, :-1] / total[:, -1:].clamp(min=1)).T.unflatten(1, self.grid_shape)
        if not self.padding:
            return mean
        known = mean.amax(0) > self.score_thr
        return torch.where(known, mean, closing(mean))

    def _discretize(self, decoded: DecoderOutput) -> list[VoxelLogits | None]:
        return [None] * len(decoded.points)

    @torch.no_grad()
    def _query_scores(self, output: HeadOutput) -> Tensor:
        logits = output.point_feats[-1]
        assert logits is not None
        return logits.sigmoid().amax(-1).mean(-1)

    def _class_term(
        self,
        output: HeadOutput,
        layer: MatchedLayer,
        semantics: Tensor,
    ) -> LossTerm:
        logits = output.point_feats[layer.index]
        assert logits is not None
        rows = zip(layer.points, layer.targets, layer.matched, strict=True)
        labels, weights = (
            torch.cat(column) for column in zip(*(self._labels(*row) for row in rows), strict=True)
        )
        counted = torch.cat(list(layer.counted))
        total = self.loss_cls(logits.flatten(0, 2), labels, row_weights=weights * counted)
        return LossTerm(total, counted.sum().double())

    @torch.no_grad()
    def _labels(
        self, points: Tensor, gt: OccupiedPoints, match: Match | None
    ) -> tuple[Tensor, Tensor]:
        """Return the label of the nearest gt point of every point, and the point's weight.

        The weight grows with the distance of that gt point from the centre of the range. Without
        any gt point (`match` None) all points are background.
        """
        if match is None:
            labels = gt.labels.new_full((len(points),), self.num_classes)
            return labels, torch.ones_like(points[:, 0])
        centres = gt.tree(points).points
        range_centre = (self.pc_range[:2] + self.pc_range[3:5]) / 2
        distance = (centres[:, :2] - range_centre).norm(dim=1) / self.scene_size[:2].norm()
        return gt.labels[match.to_gt], 1 + distance[match.to_gt]


def closing(volume: Tensor) -> Tensor:
    """Close `[K, X, Y, Z]` with a 3 x 3 x 3 window; voxels outside the grid are ignored."""
    return _window(_window(volume, torch.maximum), torch.minimum)


def _window(volume: Tensor, extreme: Callable[..., Tensor]) -> Tensor:
    """Return the extreme of every voxel and its neighbours, one axis after the other."""
    for axis in (1, 2, 3):
        length = volume.shape[axis] - 1
        result = volume.clone()
        for here, there in ((0, 1), (1, 0)):
            part = result.narrow(axis, here, length)
            extreme(part, volume.narrow(axis, there, length), out=part)
        volume = result
    return volume
