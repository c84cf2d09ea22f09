"""The head of OPUS-V2: points are discretized into voxels by a learned step.

Dimension letters as in ``models/heads/base.py``; W voxels of a layer's CPD output, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from models import ops
from models.decoder import DecoderOutput
from models.errors import ModelConfigError
from models.losses import LossTerm, OccupiedPoints

from .base import UNKNOWN_LABEL, HeadOutput, MatchedLayer, OccupancyHead
from .densifier import VoxelLogits


@MODELS.register_module()
class CPDHead(OccupancyHead):
    """Head with continuous prediction discretization (OPUS-V2), one per decoder layer.

    Args:
        densifier: Configuration of the discretization; the head completes it with grid, classes
            and point features.
        point_channels: Features the decoder gives a point.
        score_thr: Voxels whose best score is not above this are predicted free.
        loss_lovasz: Configuration of a loss on all voxels of a layer together, added as
            ``loss_lovasz``; None for none, as published.
        near_negative_m: Free voxels nearer than this to the centre of an occupied one weigh less in
            the class loss, in proportion to the distance: where a surface lies within its voxel is
            half chance, and a near miss costs little. None weighs all alike, as published.
        **kwargs: Arguments of ``OccupancyHead``.
    """

    def __init__(
        self,
        densifier: dict,
        point_channels: int = 32,
        score_thr: float = 0.25,
        loss_lovasz: dict | None = None,
        near_negative_m: float | None = None,
        **kwargs: Any,
    ) -> None:
        if near_negative_m is not None and not near_negative_m > 0:
            raise ModelConfigError(
                f"near_negative_m is {near_negative_m}: use a distance above 0, or None."
            )
        super().__init__(point_channels=point_channels, score_thr=score_thr, **kwargs)
        sizes = dict(
            pc_range=kwargs["pc_range"],
            voxel_size=kwargs["voxel_size"],
            num_classes=self.num_classes,
            point_channels=point_channels,
        )
        self.densifiers = nn.ModuleList(
            MODELS.build(densifier, default_args=sizes) for _ in range(self.num_layers)
        )
        self.loss_lovasz = None if loss_lovasz is None else MODELS.build(loss_lovasz)
        self.near_negative_m = near_negative_m

    def predict(
        self, output: HeadOutput, data_samples: Sequence[BaseDataElement]
    ) -> list[BaseDataElement]:
        """See ``OccupancyHead.predict``."""
        voxels = output.voxels[-1]
        assert voxels is not None
        scores, labels = voxels.logits.sigmoid().max(1)
        keep = scores > self.score_thr
        coords, scores, labels = voxels.coords[keep], scores[keep], labels[keep]
        for i, sample in enumerate(data_samples):
            mine = coords[:, 0] == i
            sample.pred_coords = coords[mine, 1:]
            sample.pred_labels = labels[mine]
            sample.pred_scores = scores[mine]
        return list(data_samples)

    def _discretize(self, decoded: DecoderOutput) -> list[VoxelLogits | None]:
        return [
            None if feats is None else densifier(self.denormalise(points), feats)
            for densifier, points, feats in zip(
                self.densifiers, decoded.points, decoded.point_feats, strict=True
            )
        ]

    @torch.no_grad()
    def _query_scores(self, output: HeadOutput) -> Tensor:
        voxels = output.voxels[-1]
        assert voxels is not None
        points = output.points[-1]
        # to and from metres, so that borders of voxels are rounded as in the densifier
        index = torch.floor(self.normalise(self.denormalise(points)) * self.voxel_num)
        index = torch.minimum(index.clamp(min=0), self.voxel_num - 1).long()
        batch = torch.arange(len(points), device=points.device).view(-1, 1, 1, 1)
        where = torch.cat([batch.expand_as(index[..., :1]), index], dim=-1)  # [B, Q, R, 4]
        scores = points.new_zeros(len(points), *self.grid_shape)
        scores[tuple(voxels.coords.T)] = voxels.logits.sigmoid().amax(1).to(scores)
        return scores[tuple(where.movedim(-1, 0))].mean(-1)

    def _class_term(
        self,
        output: HeadOutput,
        layer: MatchedLayer,
        semantics: Tensor,
    ) -> LossTerm:
        voxels, labels, known = self._voxels_with_labels(output, layer, semantics)
        row_weights = known.to(voxels.logits.dtype)
        if self.near_negative_m is not None:
            row_weights = row_weights * self._negative_weights(voxels, labels, layer.targets)
        total = self.loss_cls(voxels.logits, labels, row_weights=row_weights)
        return LossTerm(total, (labels != self.num_classes).sum())

    def _more_terms(
        self, output: HeadOutput, layer: MatchedLayer, semantics: Tensor
    ) -> dict[str, list[LossTerm]]:
        if self.loss_lovasz is None:
            return {}
        voxels, labels, known = self._voxels_with_labels(output, layer, semantics)
        parts = []
        for i in range(len(semantics)):
            mine = voxels.coords[:, 0] == i
            parts.append(self.loss_lovasz.term(voxels.logits[mine], labels[mine], known[mine]))
        total = torch.stack([part.total for part in parts]).sum()
        count = torch.stack([part.count for part in parts]).sum()
        return {"loss_lovasz": [LossTerm(total, count)]}

    def _voxels_with_labels(
        self, output: HeadOutput, layer: MatchedLayer, semantics: Tensor
    ) -> tuple[VoxelLogits, Tensor, Tensor]:
        """Return the voxels of a layer, their labels ``[W]`` (K is free) and bool ``[W]`` whether
        their state is known; where it is not, the label is free.
        """
        voxels = output.voxels[layer.index]
        assert voxels is not None
        b, x, y, z = voxels.coords.unbind(1)
        labels = semantics[b, x, y, z].long()
        known = labels != UNKNOWN_LABEL
        labels = torch.where(known, labels, self.empty_label)
        return voxels, torch.where(labels != self.empty_label, labels, self.num_classes), known

    @torch.no_grad()
    def _negative_weights(
        self, voxels: VoxelLogits, labels: Tensor, targets: Sequence[OccupiedPoints]
    ) -> Tensor:
        """Return weights ``[W]``: of free voxels their distance to the nearest occupied voxel's
        centre over ``near_negative_m``, 1 at most; of occupied ones 1.
        """
        assert self.near_negative_m is not None
        weights = torch.ones_like(voxels.logits[:, 0])
        for i, gt in enumerate(targets):
            rows = torch.nonzero((voxels.coords[:, 0] == i) & (labels == self.num_classes))[:, 0]
            if not len(rows) or not len(gt.points):
                continue
            centres = self.voxel_centres(voxels.coords[rows, 1:]).to(weights)
            _, squared = gt.tree(centres).nearest(ops.PointTree(centres))
            weights[rows] = (squared.sqrt() / self.near_negative_m).clamp(max=1)
        return weights
