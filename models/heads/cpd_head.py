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

from models import ops
from models.decoder import DecoderOutput
from models.errors import ModelConfigError
from models.host_numbers import HostNumbers
from models.losses import LossTerm, OccupiedPoints

from .base import OccupancyHead
from .densifier import VoxelLogits, join_points
from .interface import HeadOutput, MatchedLayer
from .labels import UNKNOWN_LABEL
from .results import Candidates, Predicted, bring_back
from .seen_surfaces import ExtraPoints, SeenSurfaces, SurfaceFeatures

# Numbers of voxels of successive samples differ by a few percent: lists are longer than the longest
# so far by this share, and change in steps of it.
_ROOM_SHARE = 0.25
_ROOM_STEP = 4096


@MODELS.register_module()
class CPDHead(OccupancyHead):
    """Head with continuous prediction discretization (OPUS-V2), one per decoder layer.

    Args:
        densifier: Configuration of the discretization; the head adds grid, classes and point
            features.
        point_channels: Number of features per point of the decoder.
        score_thr: Voxels whose best score is not above this are predicted as free.
        loss_lovasz: Configuration of a loss on all voxels of a layer together, added as
            ``loss_lovasz``; None for none, as published.
        near_negative_m: Free voxels nearer than this to the centre of an occupied one weigh less in
            the class loss, in proportion to the distance: the position of a surface within its
            voxel is partly chance, so a near miss costs little. None gives all the same weight, as
            published.
        num_seen_points: Number M of points on surfaces predicted by the image network that join the
            points of the queries in the last layer, with features of their pixels; 0 for none, as
            published. The detector needs an ``img_aux_head``.
        **kwargs: Arguments of ``OccupancyHead``.
    """

    def __init__(
        self,
        densifier: dict,
        point_channels: int = 32,
        score_thr: float = 0.25,
        loss_lovasz: dict | None = None,
        near_negative_m: float | None = None,
        num_seen_points: int = 0,
        **kwargs: Any,
    ) -> None:
        if near_negative_m is not None and not near_negative_m > 0:
            raise ModelConfigError(
                f"near_negative_m is {near_negative_m}: use a distance above 0, or None."
            )
        if num_seen_points < 0:
            raise ModelConfigError(f"num_seen_points is {num_seen_points}: use 0 or more.")
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
        self.num_seen_points = num_seen_points
        if num_seen_points > 0:
            self.seen_point_feats = SurfaceFeatures(
                self.embed_dims, self.num_classes, point_channels
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
        """Predict with one synchronisation; the predictions are on the host."""
        found, numbers = self._bring_back(voxels, len(data_samples))
        if voxels.counts is not None and any(map(operator.gt, numbers, self._room or ())):
            self._room = None  # lists were too short: repeat this sample, with synchronisation
            feats = output.point_feats[-1]
            assert feats is not None
            (voxels,) = self._discretize_on_device([output.points[-1]], [feats], output.extra)
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
        """Choose the lengths of the next sample's lists from this sample's numbers of voxels."""
        needed = [_length(count) for count in counts]
        if self._room is None or any(map(operator.gt, needed, self._room)):
            self._room = list(map(max, needed, self._room or needed))

    @property
    def uses_seen_surfaces(self) -> bool:
        """See ``OccupancyHead.uses_seen_surfaces``."""
        return super().uses_seen_surfaces or self.num_seen_points > 0

    def _extra_points(
        self, decoded: DecoderOutput, seen: Sequence[SeenSurfaces] | None
    ) -> ExtraPoints | None:
        if not self.num_seen_points:
            return None
        last, last_feats = self.denormalise(decoded.points[-1]).detach(), decoded.point_feats[-1]
        assert last_feats is not None
        number = torch.arange(self.num_seen_points, device=last.device)
        points, feats = [], []
        for i, surfaces in enumerate(self._checked_seen(seen)):
            count = surfaces.exists.sum()
            # evenly over the existing points, or some of them twice
            index = torch.where(
                count < len(number), number % count.clamp(min=1), number * count // len(number)
            )
            own = surfaces.take(index)
            # without any, points of the queries a second time, which adds no voxel
            queries, of_queries = last[i].flatten(0, 1), last_feats[i].flatten(0, 1)
            again = number % len(queries)
            points.append(torch.where(own.exists[:, None], own.points.to(last), queries[again]))
            own_feats = self.seen_point_feats(own)
            feats.append(torch.where(own.exists[:, None], own_feats, of_queries[again]))
        return ExtraPoints(torch.stack(points), torch.stack(feats))

    def _discretize(
        self, decoded: DecoderOutput, extra: ExtraPoints | None = None
    ) -> list[VoxelLogits | None]:
        wanted = [i for i, feats in enumerate(decoded.point_feats) if feats is not None]
        result: list[VoxelLogits | None] = [None] * len(decoded.points)
        points = [decoded.points[i] for i in wanted]
        feats = [feats for feats in decoded.point_feats if feats is not None]
        if decoded.points[0].device.type == "cpu":
            joined = [None] * (len(wanted) - 1) + [extra]
            found = [
                self.densifiers[i](self.denormalise(own), own_feats, extra=own_extra)
                for i, own, own_feats, own_extra in zip(wanted, points, feats, joined, strict=True)
            ]
        else:
            found = self._discretize_on_device(points, feats, extra)
        for i, voxels in zip(wanted, found, strict=True):
            result[i] = voxels
        return result

    def _discretize_on_device(
        self, points: Sequence[Tensor], feats: Sequence[Tensor], extra: ExtraPoints | None
    ) -> list[VoxelLogits]:
        """Discretize the last layers, with one synchronisation for all of them.

        Prediction does not synchronise after the first samples, whose numbers of voxels give the
        lengths of the lists. ``extra`` joins the points of the last layer.
        """
        densifiers: list[Any] = list(self.densifiers)[-len(points) :]
        in_metres = [self.denormalise(own) for own in points]
        all_points = list(in_metres)
        if extra is not None:
            all_points[-1] = join_points(in_metres[-1], extra.points)
        batch = len(points[0])
        predicts = not torch.is_grad_enabled() and not self.training and len(points) == 1
        if self.memory is not None:  # the memory needs all voxels
            predicts = False
        if predicts and self._room is not None:
            chain = densifiers[0].voxel_chain(all_points, self._room)
            counts = chain.ends[:, -1]
            # positions past the end of the list; the result there is not used
            chain = replace(chain, place=chain.place.clamp(min=0))
            voxels = densifiers[0](in_metres[0], feats[0], chain, extra=extra)
            return [voxels._replace(counts=counts)]
        chain = densifiers[0].voxel_chain(all_points)
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
            last_point = first_point + all_points[i][..., 0].numel()
            place = chain.place[first_point:last_point] - begins[0]
            part = replace(chain, sets=tuple(sets), place=place)
            joined = extra if i == len(points) - 1 else None
            result.append(densifier(own, own_feats, part, i * batch, joined))
            first_point = last_point
        return result

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
        # The voxels of a sample are contiguous: one synchronisation for all samples.
        is_of_sample = voxels.coords[:, :1] == torch.arange(len(semantics), device=labels.device)
        counts = HostNumbers(is_of_sample.sum(0)).read()
        of_samples = (part.split(counts) for part in (voxels.logits, labels, known))
        parts = [self.loss_lovasz.term(*own) for own in zip(*of_samples, strict=True)]
        total = torch.stack([part.total for part in parts]).sum()
        count = torch.stack([part.count for part in parts]).sum()
        return {"loss_lovasz": [LossTerm(total, count)]}

    def _voxels_with_labels(
        self, output: HeadOutput, layer: MatchedLayer, semantics: Tensor
    ) -> tuple[VoxelLogits, Tensor, Tensor]:
        """Return the voxels of a layer, their labels and masks of known voxels.

        Labels ``[W]`` are K for free voxels and for voxels of unknown state; masks are bool
        ``[W]``.
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
        """Return the class-loss weights of voxels, ``[W]``.

        Free voxels have the distance to the centre of the nearest occupied voxel divided by
        ``near_negative_m``, at most 1. Occupied voxels have 1.
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


def _length(count: int) -> int:
    return -(-int(count * (1 + _ROOM_SHARE)) // _ROOM_STEP) * _ROOM_STEP
