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

from models.decoder import DecoderOutput
from models.losses import LossTerm

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
        **kwargs: Arguments of ``OccupancyHead``.
    """

    def __init__(
        self,
        densifier: dict,
        point_channels: int = 32,
        score_thr: float = 0.25,
        **kwargs: Any,
    ) -> None:
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

    def _class_term(
        self,
        output: HeadOutput,
        layer: MatchedLayer,
        semantics: Tensor,
    ) -> LossTerm:
        voxels = output.voxels[layer.index]
        assert voxels is not None
        b, x, y, z = voxels.coords.unbind(1)
        labels = semantics[b, x, y, z].long()
        known = labels != UNKNOWN_LABEL
        labels = torch.where(known, labels, self.empty_label)
        occupied = labels != self.empty_label
        labels = torch.where(occupied, labels, self.num_classes)
        row_weights = known.to(voxels.logits.dtype)
        total = self.loss_cls(voxels.logits, labels, row_weights=row_weights)
        return LossTerm(total, occupied.sum())
