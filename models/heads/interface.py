"""Inputs and outputs of heads.

Dimension letters: B batch, T frames, N cameras, Q queries, C embedding channels, R_i points of a
query after decoder layer i, F features of a point, G groups, P sampling points of a group, X, Y, Z
voxels along the axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.host_numbers import HostNumbers
from models.losses import Match, OccupiedPoints

from .densifier import VoxelLogits
from .seen_surfaces import ExtraPoints


@dataclass(frozen=True)
class CameraGeometry:
    """Camera matrices of a batch.

    Attributes:
        ego2img: ``[B, T*N, 4, 4]``, metres of the ego frame to pixels (u*w, v*w, w) of the
            augmented image, frame-major.
        ego2occ: ``[B, 4, 4]``, metres of the ego frame to metres of the voxel grid's.
        img_hw: Height and width in pixels of the network's input.
    """

    ego2img: Tensor
    ego2occ: Tensor
    img_hw: tuple[int, int]

    def occ2img(self) -> Tensor:
        """Return ``[B, T*N, 4, 4]``, metres of the occ frame to pixels."""
        # `inv` would synchronise with the device to check whether the matrix is singular
        return self.ego2img @ torch.linalg.inv_ex(self.ego2occ).inverse.unsqueeze(1)


@dataclass(frozen=True)
class LidarInput:
    """LiDAR inputs of a batch.

    Attributes:
        points: Per sample ``[n, 5]``: x, y, z in metres of the occ frame, intensity, and the time
            lag behind the key frame in seconds, exactly 0 for the points of its own sweep.
        bev_feats: ``[B, C, h, w]``, features over the xy plane of the grid's range, rows along y,
            columns along x.
        num_current: Number of points of the current sweep per sample, if it has been requested
            before; None to count them.
    """

    points: Sequence[Tensor]
    bev_feats: Tensor
    num_current: HostNumbers | None = None

    @staticmethod
    def count_current(points: Sequence[Tensor]) -> HostNumbers:
        """Count the points of each sample's current sweep, without synchronisation."""
        return HostNumbers(torch.stack([(own[:, 4] == 0).sum() for own in points]))


@dataclass(frozen=True)
class HeadOutput:
    """Raw outputs of a head.

    Attributes:
        init_points: ``[B, Q, 1, 3]``, initial points of the queries, normalised.
        points: ``[B, Q, R_i, 3]`` per decoder layer, normalised, not clamped.
        point_feats: ``[B, Q, R_i, F]`` per layer; in eval mode None for all but the last.
        voxels: Voxel logits per layer if the head discretizes; None as in ``point_feats``.
        sampling_points: ``[B, Q, G, P, 3]`` per layer: where the decoder sampled features, in
            metres of the occ frame, without gradient.
        query_feats: ``[B, Q, C]`` after the last layer.
        extra: Points that joined the last layer's; None for none.
    """

    init_points: Tensor
    points: list[Tensor]
    point_feats: list[Tensor | None]
    voxels: list[VoxelLogits | None]
    sampling_points: list[Tensor] = field(default_factory=list)
    query_feats: Tensor | None = None
    extra: ExtraPoints | None = None


@dataclass(frozen=True)
class MatchedLayer:
    """Points of a decoder layer and their nearest ground truth.

    Attributes:
        index: Number of the layer.
        points: Per sample ``[Q*R_i, 3]``, metres of the occ frame.
        targets: Per sample.
        matched: Per sample, see ``OccupiedPoints.match``.
        counted: Per sample bool ``[Q*R_i]``: points outside of all voxels of unknown state.
    """

    index: int
    points: Sequence[Tensor]
    targets: Sequence[OccupiedPoints]
    matched: Sequence[Match | None]
    counted: Sequence[Tensor]
