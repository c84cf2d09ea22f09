"""Base class of the heads: queries, decoder, location loss.

Dimension letters: B batch, T frames, N cameras, L pyramid levels, Q queries, C embedding channels,
R_i points of a query after decoder layer i, F features of a point, X, Y, Z voxels along the axes,
M occupied voxels of a sample.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from models.decoder import DecoderOutput
from models.decoder.precision import check_precision, products_in
from models.errors import ModelConfigError
from models.losses import LossTerm, LossTerms, OccupiedPoints, normalize_alone
from models.randomness import SampleDraws

from .densifier import VoxelLogits
from .interface import CameraGeometry, HeadOutput, LidarInput, MatchedLayer
from .labels import UNKNOWN_LABEL, LabelGrids
from .query_memory import QueryMemory, SequenceFrame
from .query_starts import QueryStarts
from .seen_surfaces import ExtraPoints, SeenSurfaces, SurfaceFeatures


class OccupancyHead(QueryStarts, metaclass=ABCMeta):
    """Base class of heads, with queries, decoder and location loss.

    Queries start at learned points. With LiDAR they start at points of the current sweep, selected
    by farthest-point sampling; the initial points then have no loss.

    Args:
        pc_range: ``(x_min, y_min, z_min, x_max, y_max, z_max)`` in metres of the occ frame.
        voxel_size: Edge lengths ``(x, y, z)`` of a voxel in metres.
        num_classes: Number of semantic classes K; labels are 0 ... K-1.
        empty_label: Label of free voxels in the ground truth.
        embed_dims: C.
        num_query: Q.
        num_frames: T.
        num_cams: N.
        num_levels: L.
        point_channels: F.
        decoder: Configuration of the decoder; the head adds the sizes listed before.
        loss_pts: Configuration of the location loss.
        loss_cls: Configuration of the class loss.
        score_thr: Voxels whose highest score is not above this are predicted as free.
        use_lidar: Whether the model has a LiDAR branch.
        loss_pts_on: Points of the location loss: ``'all'``, as published, or ``'initial'``. The
            points of the layers are then trained only by the class loss, whose gradient reaches
            them in heads that discretize.
        memory: Configuration of a ``QueryMemory``; queries of the previous frame replace learned
            ones. None for none, as published.
        num_seen_queries: Number of queries that start on surfaces predicted by the image network,
            with features of their pixels, instead of learned points and zeros; 0 for none, as
            published. The detector needs an ``img_aux_head``.
        seen_level: Index of the feature map whose pixels give the surfaces.
        precision: Precision of matrix products: ``'float32'``, ``'tf32'`` or ``'bfloat16'``, see
            ``models.decoder.precision``.
        init_cfg: Initialisation configuration of MMEngine.

    Raises:
        ModelConfigError: If settings contradict each other.
    """

    def __init__(
        self,
        pc_range: Sequence[float],
        voxel_size: Sequence[float],
        num_classes: int,
        empty_label: int,
        embed_dims: int,
        num_query: int,
        num_frames: int,
        num_cams: int,
        num_levels: int,
        point_channels: int,
        decoder: dict,
        loss_pts: dict,
        loss_cls: dict,
        score_thr: float,
        use_lidar: bool = False,
        loss_pts_on: Literal["all", "initial"] = "all",
        memory: dict | None = None,
        num_seen_queries: int = 0,
        seen_level: int = -1,
        precision: str = "float32",
        init_cfg: dict | None = None,
    ) -> None:
        check_precision(precision)
        if loss_pts_on == "initial" and use_lidar:
            raise ModelConfigError(
                "loss_pts_on='initial' leaves a model with LiDAR without a location loss: its "
                "queries start from LiDAR points, so set loss_pts_on='all'."
            )
        if not -num_levels <= seen_level < num_levels:
            raise ModelConfigError(
                f"seen_level is {seen_level}: use an index of the {num_levels} feature maps."
            )
        stored = ("pc_range", "scene_size", "voxel_size", "voxel_num")
        super().__init__(pc_range, voxel_size, stored, init_cfg)
        self.num_classes = num_classes
        self.empty_label = empty_label
        self.embed_dims = embed_dims
        self.num_query = num_query
        self.num_frames = num_frames
        self.num_cams = num_cams
        self.num_levels = num_levels
        self.score_thr = score_thr
        self.use_lidar = use_lidar
        self.precision = precision
        self.loss_pts_on = loss_pts_on
        self.num_seen_queries = num_seen_queries
        self.seen_level = seen_level
        self.memory: QueryMemory | None = None
        if memory is not None:
            self.memory = MODELS.build(memory, default_args=dict(embed_dims=embed_dims))
        if num_seen_queries > 0:
            self.seen_feats = SurfaceFeatures(embed_dims, num_classes, embed_dims)
        taken = num_seen_queries + (self.memory.num_kept if self.memory else 0)
        if num_seen_queries < 0 or taken > num_query:
            raise ModelConfigError(
                f"num_seen_queries={num_seen_queries} and memory.num_kept take {taken} of "
                f"num_query={num_query} queries: lower them."
            )
        sizes = dict(
            pc_range=pc_range,
            embed_dims=embed_dims,
            point_channels=point_channels,
            num_frames=num_frames,
            num_cams=num_cams,
            num_levels=num_levels,
            use_lidar=use_lidar,
        )
        # nested, to match the published parameter names
        built = MODELS.build(decoder, default_args=sizes)
        self.transformer = nn.ModuleDict({"decoder": built})
        self.num_layers = len(built.decoder_layers)
        if not use_lidar:
            self.init_points = nn.Embedding(num_query, 3)
            nn.init.uniform_(self.init_points.weight)
        self.loss_pts = MODELS.build(loss_pts)
        self.loss_cls = MODELS.build(loss_cls)
        _check_classes(loss_cls.get("class_weights"), loss_pts.get("rare_classes"), num_classes)

    def forward(
        self,
        mlvl_feats: Sequence[Tensor],
        geometry: CameraGeometry,
        lidar: LidarInput | None = None,
        draws: SampleDraws | None = None,
        frames: Sequence[SequenceFrame | None] | None = None,
        seen: Sequence[SeenSurfaces] | None = None,
    ) -> HeadOutput:
        """Run the decoder, in the precision of the parameters.

        Args:
            mlvl_feats: L maps ``[B, T*N, C, h, w]``.
            geometry: Cameras of the batch.
            lidar: LiDAR inputs, for heads with LiDAR.
            draws: Random numbers of the dropout in training; None uses torch's generator.
            frames: Frames of the samples, for heads with a memory.
            seen: Surfaces of every sample that the image network predicts, for heads that use them.

        Raises:
            ModelConfigError: If levels, frames, cameras, channels or LiDAR do not match the
                configuration.
        """
        self._check_inputs(mlvl_feats, geometry)
        with products_in(self.precision, mlvl_feats[0].device):
            return self._forward(mlvl_feats, geometry, lidar, draws, frames, seen)

    def _forward(
        self,
        mlvl_feats: Sequence[Tensor],
        geometry: CameraGeometry,
        lidar: LidarInput | None,
        draws: SampleDraws | None,
        frames: Sequence[SequenceFrame | None] | None,
        seen: Sequence[SeenSurfaces] | None,
    ) -> HeadOutput:
        dtype = self.pc_range.dtype
        init_points = self._initial_points(len(geometry.ego2occ), lidar)
        start, start_feats, seen = self.start(init_points, frames, seen)
        output = self.decode(
            init_points,
            # half-precision maps are not converted: sampling sums in the precision of the points
            [
                level if level.element_size() == 2 and dtype == torch.float32 else level.to(dtype)
                for level in mlvl_feats
            ],
            geometry.occ2img().to(dtype),
            geometry.img_hw,
            None if lidar is None else lidar.bev_feats.to(dtype),
            draws,
            start,
            start_feats,
            seen,
        )
        if self.memory is not None and frames is not None:
            assert output.query_feats is not None
            centres = self.denormalise(output.points[-1]).mean(2)
            self.memory.keep(frames, output.query_feats, centres, self._query_scores(output))
        return output

    def decode(
        self,
        init_points: Tensor,
        mlvl_feats: Sequence[Tensor],
        occ2img: Tensor,
        img_hw: tuple[int, int],
        bev_feats: Tensor | None = None,
        draws: SampleDraws | None = None,
        start: Tensor | None = None,
        start_feats: Tensor | None = None,
        seen: Sequence[SeenSurfaces] | None = None,
    ) -> HeadOutput:
        """Run the decoder and discretize its outputs; arguments as in ``OPUSDecoder.forward``.

        Queries start at ``start`` ``[B, Q, 1, 3]`` with ``start_feats`` ``[B, Q, C]``; None for
        ``init_points`` and zeros. ``seen`` has the points inside the grid first.
        """
        decoded: DecoderOutput = self.transformer["decoder"](
            init_points if start is None else start,
            mlvl_feats, occ2img, img_hw, bev_feats, draws, start_feats,
        )  # fmt: skip
        extra = self._extra_points(decoded, seen)
        return HeadOutput(
            init_points,
            decoded.points,
            decoded.point_feats,
            self._discretize(decoded, **({} if extra is None else {"extra": extra})),
            decoded.sampling_points,
            decoded.query_feats,
            extra,
        )

    def loss(
        self, output: HeadOutput, data_samples: Sequence[BaseDataElement]
    ) -> dict[str, Tensor]:
        """Return the losses of a batch on one process: the means of ``loss_terms``, by name."""
        return normalize_alone(self.loss_terms(output, data_samples))

    def loss_terms(
        self,
        output: HeadOutput,
        data_samples: Sequence[BaseDataElement],
        grids: LabelGrids | None = None,
    ) -> LossTerms:
        """Return the terms of the losses of the initial points and of every decoder layer.

        Args:
            output: Output of ``forward`` in training mode.
            data_samples: Samples with ``voxel_semantics`` ``[X, Y, Z]``, and optionally
                ``mask_camera`` ``[X, Y, Z]``, the voxels visible to a camera. Voxels with
                ``UNKNOWN_LABEL`` are not targets, and predictions inside them have no loss.
            grids: Labels of the samples, see ``label_grids``; None to make them.

        Returns:
            ``init_loss_pts`` (without LiDAR), ``loss_cls`` and ``loss_pts`` of the last layer, and
            ``d{i}.loss_cls``, ``d{i}.loss_pts`` of the others; with the losses that a head adds to
            each layer.
        """
        grids = grids or self.label_grids(data_samples, output.init_points.device)
        semantics, targets = grids.semantics, self._targets_of(grids, data_samples)
        # not skipped if there are none: the check would synchronise with the device
        unknown = semantics == UNKNOWN_LABEL
        terms: dict[str, list[LossTerm]] = {}
        if not self.use_lidar:
            points = self._in_metres(output.init_points)
            counted = self._outside(points, unknown)
            terms["init_loss_pts"] = self.loss_pts.terms(points, targets, counted=counted)
        last = len(output.points) - 1
        for i in [last, *range(last)]:
            prefix = "" if i == last else f"d{i}."
            points = self._in_metres(output.points[i])
            matched = [gt.match(own) for own, gt in zip(points, targets, strict=True)]
            counted = self._outside(points, unknown)
            layer = MatchedLayer(i, points, targets, matched, counted)
            terms[f"{prefix}loss_cls"] = [self._class_term(output, layer, semantics)]
            if self.loss_pts_on == "all":
                terms[f"{prefix}loss_pts"] = self.loss_pts.terms(points, targets, matched, counted)
            for name, parts in self._more_terms(output, layer, semantics).items():
                terms[f"{prefix}{name}"] = parts
        return terms

    @abstractmethod
    def predict(
        self, output: HeadOutput, data_samples: Sequence[BaseDataElement]
    ) -> list[BaseDataElement]:
        """Add ``pred_coords``, ``pred_labels`` and ``pred_scores`` to the samples.

        ``pred_coords`` int64 ``[n, 3]`` are voxels (x, y, z), ``pred_labels`` int64 ``[n]`` their
        classes, ``pred_scores`` ``[n]`` their scores. They are on the host; the copy is the only
        synchronisation.
        """

    @torch.no_grad()
    def occupied_points(
        self, semantics: Tensor, data_samples: Sequence[BaseDataElement]
    ) -> list[OccupiedPoints]:
        """Return the centres of the occupied voxels of every sample, with one synchronisation.

        Args:
            semantics: ``[B, X, Y, Z]`` labels.
            data_samples: Samples, optionally with ``mask_camera``.
        """
        grids = LabelGrids.of(semantics, self.empty_label)
        return self._targets_of(grids, data_samples)

    @torch.no_grad()
    def label_grids(
        self, data_samples: Sequence[BaseDataElement], device: torch.device
    ) -> LabelGrids:
        """Return the labels of a batch on a device, with asynchronous counts.

        Raises:
            ModelConfigError: If a label grid does not have the shape of the predictions.
        """
        return LabelGrids.of(self._stacked_labels(data_samples, device), self.empty_label)

    def _targets_of(
        self, grids: LabelGrids, data_samples: Sequence[BaseDataElement]
    ) -> list[OccupiedPoints]:
        targets = []
        for sample, (own, own_labels) in zip(data_samples, grids.occupied_voxels(), strict=True):
            mask = sample.get("mask_camera")
            visible = torch.ones_like(own_labels, dtype=torch.bool)
            if mask is not None:
                visible = mask.to(own.device)[tuple(own.unbind(1))]
            targets.append(OccupiedPoints(self.voxel_centres(own), own_labels, visible))
        return targets

    def _stacked_labels(
        self, data_samples: Sequence[BaseDataElement], device: torch.device
    ) -> Tensor:
        """Return the labels ``[B, X, Y, Z]`` of all samples.

        Raises:
            ModelConfigError: If a label grid has another shape than the model's.
        """
        for sample in data_samples:
            if tuple(sample.voxel_semantics.shape) != self.grid_shape:
                raise ModelConfigError(
                    f"voxel_semantics has the shape {tuple(sample.voxel_semantics.shape)}, the "
                    f"model predicts {self.grid_shape}: check pc_range and voxel_size of the model."
                )
        return torch.stack([sample.voxel_semantics for sample in data_samples]).to(device)

    @torch.no_grad()
    def _outside(self, points: Sequence[Tensor], voxels: Tensor) -> list[Tensor]:
        """Return masks of the points outside of a set of voxels.

        Args:
            points: Per sample ``[n, 3]``, metres of the occ frame.
            voxels: bool ``[B, X, Y, Z]``.

        Returns:
            Per sample bool ``[n]``; true for points outside the grid.
        """
        outside = []
        for own_points, grid in zip(points, voxels, strict=True):
            index = torch.floor(self.normalise(own_points) * self.voxel_num)
            inside = ((index >= 0) & (index < self.voxel_num)).all(1)
            x, y, z = torch.where(inside[:, None], index, 0).long().unbind(1)
            outside.append(~(inside & grid[x, y, z]))
        return outside

    @abstractmethod
    def _class_term(
        self,
        output: HeadOutput,
        layer: MatchedLayer,
        semantics: Tensor,
    ) -> LossTerm:
        """Return the sum of the class loss of a layer, and its divisor.

        ``semantics`` is ``[B, X, Y, Z]``.
        """

    def _more_terms(
        self, output: HeadOutput, layer: MatchedLayer, semantics: Tensor
    ) -> dict[str, list[LossTerm]]:
        """Return additional terms of a layer by the name of the loss."""
        return {}

    def _extra_points(
        self, decoded: DecoderOutput, seen: Sequence[SeenSurfaces] | None
    ) -> ExtraPoints | None:
        """Return points that join those of the last layer."""
        return None

    @abstractmethod
    def _discretize(self, decoded: DecoderOutput) -> list[VoxelLogits | None]:
        """Return the voxel logits of every layer, or None.

        Heads with ``_extra_points`` also take them, as ``extra``.
        """

    def _query_scores(self, output: HeadOutput) -> Tensor:
        """Return the scores of the queries in the last layer, ``[B, Q]``.

        A score is the mean of the highest sigmoid score at each of the query's points.

        Raises:
            ModelConfigError: If the head has no scores of queries.
        """
        raise ModelConfigError(
            f"{type(self).__name__} has no scores of queries, which its memory needs: set "
            "memory=None, or give it a method _query_scores."
        )

    def _in_metres(self, points: Tensor) -> list[Tensor]:
        """Return the points of every sample, ``[Q*R, 3]``, from normalised ``[B, Q, R, 3]``."""
        return list(self.denormalise(points).flatten(1, 2))

    def _check_inputs(self, mlvl_feats: Sequence[Tensor], geometry: CameraGeometry) -> None:
        batch, images = geometry.ego2img.shape[:2]
        if len(mlvl_feats) != self.num_levels:
            raise ModelConfigError(
                f"The head has num_levels={self.num_levels}, the image network gives "
                f"{len(mlvl_feats)} feature maps: make them equal."
            )
        for feats in mlvl_feats:
            expected = (batch, self.num_frames * self.num_cams, self.embed_dims)
            if images != expected[1] or tuple(feats.shape[:3]) != expected:
                raise ModelConfigError(
                    f"The head expects feature maps [B, T*N, C] = {list(expected)} with "
                    f"num_frames={self.num_frames} and num_cams={self.num_cams}; got "
                    f"{list(feats.shape[:3])} with {images} projection matrices."
                )


def _check_classes(
    class_weights: Sequence[float] | None, rare_classes: Sequence[int] | None, num_classes: int
) -> None:
    """Check the class settings of the losses.

    Raises:
        ModelConfigError: Weights for another number of classes, or a class that does not exist.
    """
    if class_weights is not None and len(class_weights) != num_classes:
        raise ModelConfigError(
            f"class_weights has {len(class_weights)} entries, but there are {num_classes} classes: "
            "give one weight for each class"
        )
    if any(not 0 <= label < num_classes for label in rare_classes or ()):
        raise ModelConfigError(
            f"rare_classes is {list(rare_classes or ())}, but classes are numbered from 0 to "
            f"{num_classes - 1}"
        )
