"""The head of OPUS-V2: points are discretized into voxels by a learned step.

Dimension letters as in ``models/heads/base.py``; W voxels of a layer's CPD output, K classes.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from models.decoder import DecoderOutput
from models.losses import LossTerm

from .base import UNKNOWN_LABEL, HeadOutput, MatchedLayer, OccupancyHead
from .densifier import VoxelLogits
from .results import Candidates, Predicted, bring_back

# Voxels of successive samples differ by a few percent: lists are that much longer than the longest
# so far, and change in such steps.
_ROOM_SHARE = 0.25
_ROOM_STEP = 4096


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
        # Lengths of the lists of voxels with a point and of all voxels, in prediction on a device.
        self._room: list[int] | None = None

    def predict(
        self, output: HeadOutput, data_samples: Sequence[BaseDataElement]
    ) -> list[BaseDataElement]:
        """See ``OccupancyHead.predict``."""
        voxels = output.voxels[-1]
        assert voxels is not None
        if voxels.logits.device.type != "cpu":
            return self._predict_on_device(output, voxels, data_samples)
        scores, labels = voxels.logits.sigmoid().max(1)
        keep = scores > self.score_thr
        coords, scores, labels = voxels.coords[keep], scores[keep], labels[keep]
        for i, sample in enumerate(data_samples):
            mine = coords[:, 0] == i
            sample.pred_coords = coords[mine, 1:]
            sample.pred_labels = labels[mine]
            sample.pred_scores = scores[mine]
        return list(data_samples)

    @torch.no_grad()
    def _predict_on_device(
        self, output: HeadOutput, voxels: VoxelLogits, data_samples: Sequence[BaseDataElement]
    ) -> list[BaseDataElement]:
        """Predict with one wait for the device; predictions then lie on the host."""
        found, numbers = self._bring_back(voxels, len(data_samples))
        if voxels.counts is not None and any(map(operator.gt, numbers, self._room or ())):
            self._room = None  # lists were too short: this sample again, with a wait
            feats = output.point_feats[-1]
            assert feats is not None
            (voxels,) = self._discretize_on_device([output.points[-1]], [feats])
            found, numbers = self._bring_back(voxels, len(data_samples))
        if numbers:
            self._make_room(numbers)
        for sample, predicted in zip(data_samples, found, strict=True):
            sample.pred_coords, sample.pred_labels, sample.pred_scores = predicted
        return list(data_samples)

    def _bring_back(
        self, voxels: VoxelLogits, num_samples: int
    ) -> tuple[list[Predicted], list[int]]:
        scores, labels = voxels.logits.sigmoid().max(1)
        sample, x, y, z = voxels.coords.unbind(1)
        _, y_num, z_num = self.grid_shape
        keep = (scores > self.score_thr) & (sample >= 0)
        voxel = (x * y_num + y) * z_num + z
        candidates = Candidates(keep, sample, voxel, labels, scores)
        return bring_back(candidates, num_samples, self.grid_shape, voxels.counts)

    def _make_room(self, counts: Sequence[int]) -> None:
        """Choose the lengths of the next sample's lists of voxels by the numbers of this one's."""
        needed = [_length(count) for count in counts]
        if self._room is None or any(map(operator.gt, needed, self._room)):
            self._room = list(map(max, needed, self._room or needed))

    def _discretize(self, decoded: DecoderOutput) -> list[VoxelLogits | None]:
        wanted = [i for i, feats in enumerate(decoded.point_feats) if feats is not None]
        result: list[VoxelLogits | None] = [None] * len(decoded.points)
        points = [decoded.points[i] for i in wanted]
        feats = [feats for feats in decoded.point_feats if feats is not None]
        if decoded.points[0].device.type == "cpu":
            found = [
                self.densifiers[i](self.denormalise(own), own_feats)
                for i, own, own_feats in zip(wanted, points, feats, strict=True)
            ]
        else:
            found = self._discretize_on_device(points, feats)
        for i, voxels in zip(wanted, found, strict=True):
            result[i] = voxels
        return result

    def _discretize_on_device(
        self, points: Sequence[Tensor], feats: Sequence[Tensor]
    ) -> list[VoxelLogits]:
        """Discretize the last layers; the host waits once for all of them, in prediction not at
        all once it knows how many voxels are usual.
        """
        densifiers: list[Any] = list(self.densifiers)[-len(points) :]
        in_metres = [self.denormalise(own) for own in points]
        batch = len(points[0])
        predicts = not torch.is_grad_enabled() and not self.training and len(points) == 1
        if predicts and self._room is not None:
            chain = densifiers[0].voxel_chain(in_metres, self._room)
            counts = chain.ends[:, -1]
            # places beyond the list's end: of a result that is not used
            chain = replace(chain, place=chain.place.clamp(min=0))
            return [densifiers[0](in_metres[0], feats[0], chain)._replace(counts=counts)]
        chain = densifiers[0].voxel_chain(in_metres)
        ends: list[list[int]] = chain.ends[:, batch - 1 :: batch].tolist()  # of sets and layers
        if predicts:
            self._make_room([own[-1] for own in ends])
        result, first_point = [], 0
        for i, (densifier, own, own_feats) in enumerate(
            zip(densifiers, in_metres, feats, strict=True)
        ):
            begins = [own_ends[i - 1] if i else 0 for own_ends in ends]
            sets = [
                voxels.part(begin, own_ends[i])
                for voxels, begin, own_ends in zip(chain.sets, begins, ends, strict=True)
            ]
            last_point = first_point + own[..., 0].numel()
            place = chain.place[first_point:last_point] - begins[0]
            part = replace(chain, sets=tuple(sets), place=place)
            result.append(densifier(own, own_feats, part, i * batch))
            first_point = last_point
        return result

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


def _length(count: int) -> int:
    return -(-int(count * (1 + _ROOM_SHARE)) // _ROOM_STEP) * _ROOM_STEP
