"""Initial points and features of the queries of a head.

Dimension letters: B batch, Q queries, C embedding channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ops
from models.errors import ModelConfigError
from models.layers import GridModule

from .interface import LidarInput
from .query_memory import QueryMemory, SequenceFrame, farthest_first
from .results import positions
from .seen_surfaces import SeenSurfaces, SurfaceFeatures


class QueryStarts(GridModule):
    """Base class with the initial points of queries.

    Queries start at learned points or LiDAR points, with zeros as features. Queries of the previous
    frame and queries on surfaces that the image network predicts can replace some of them.
    Subclasses set the attributes below.

    Attributes:
        num_query: Q.
        embed_dims: C.
        use_lidar: Whether queries start at LiDAR points instead of learned points.
        num_seen_queries: Number of queries that start on surfaces predicted by the image network.
        seen_feats: Gives these queries their features; only if there are any.
        memory: Queries of the previous frame; None for none.
        init_points: Learned points `[Q, 3]`, normalised; without LiDAR only.
    """

    num_query: int
    embed_dims: int
    use_lidar: bool
    num_seen_queries: int
    seen_feats: SurfaceFeatures
    memory: QueryMemory | None
    init_points: nn.Embedding

    def start(
        self,
        init_points: Tensor,
        frames: Sequence[SequenceFrame | None] | None,
        seen: Sequence[SeenSurfaces] | None,
    ) -> tuple[Tensor, Tensor | None, Sequence[SeenSurfaces] | None]:
        """Return the starts of the queries.

        Queries of the memory come first, then queries on predicted surfaces. The others start at
        the points of ``init_points`` that are farthest from these.

        Args:
            init_points: ``[B, Q, 1, 3]``, normalised.
            frames: Frames of the samples, for heads with a memory.
            seen: Predicted surfaces of the samples, for heads that use them.

        Returns:
            Initial points ``[B, Q, 1, 3]``, normalised; features ``[B, Q, C]``, or None for zeros;
            and ``seen`` with the points inside the grid first.

        Raises:
            ModelConfigError: If ``seen`` is required and missing.
        """
        if seen is not None:
            seen = [own.existing_first(self._is_inside(own.points)) for own in seen]
        if self.memory is None and not self.num_seen_queries:
            return init_points, None, seen
        recalled: list[tuple[Tensor, Tensor] | None] = [None] * len(init_points)
        if self.memory is not None and frames is not None:
            recalled = self.memory.recall(frames)
        starts = []
        for i, learned in enumerate(init_points[:, :, 0]):
            points, feats = learned[:0], learned.new_zeros(0, self.embed_dims)
            exists = torch.ones(0, dtype=torch.bool, device=learned.device)
            memory = recalled[i]
            if memory is not None:
                points, feats = self.normalise(memory[0].to(learned)), memory[1]
                exists = self._is_inside(memory[0])
            if self.num_seen_queries:
                spread = self._spread_of(self._checked_seen(seen)[i])
                points = torch.cat([points, self.normalise(spread.points.to(learned))])
                feats = torch.cat([feats, self.seen_feats(spread).to(feats)])
                exists = torch.cat([exists, spread.exists])
            starts.append(self._filled(points, feats, exists, learned))
        points, feats = (torch.stack(parts) for parts in zip(*starts, strict=True))
        if self.training and self.memory is not None:
            # data-parallel training needs a gradient of all parameters in every step
            feats = feats + self.memory.no_effect()
        return points.unsqueeze(2), feats, seen

    def _filled(
        self, points: Tensor, feats: Tensor, exists: Tensor, learned: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return points ``[Q, 3]`` and features ``[Q, C]`` of all queries of a sample.

        Args:
            points: ``[n, 3]``, normalised.
            feats: ``[n, C]``.
            exists: bool ``[n]``; learned points replace the others.
            learned: ``[Q, 3]``, normalised; those farthest from the existing points are used.
        """
        number = self.num_query - len(points)
        if not len(points):
            return learned, learned.new_zeros(number, self.embed_dims)
        far = torch.where(exists[:, None], self.denormalise(points), math.inf)
        ranking = farthest_first(self.denormalise(learned), far)
        rest, next_ones = ranking[:number].sort().values, ranking[number:]
        fill = next_ones[((~exists).cumsum(0) - 1).clamp(min=0)]
        own = torch.where(exists[:, None], points, learned[fill])
        own_feats = torch.where(exists[:, None], feats, 0.0)
        return torch.cat([own, learned[rest]]), F.pad(own_feats, (0, 0, 0, number))

    @property
    def uses_seen_surfaces(self) -> bool:
        """Whether the head needs surfaces that the image network predicts."""
        return self.num_seen_queries > 0

    @staticmethod
    def _checked_seen(seen: Sequence[SeenSurfaces] | None) -> Sequence[SeenSurfaces]:
        if seen is None:
            raise ModelConfigError(
                "num_seen_queries and num_seen_points need an image network that predicts "
                "surfaces: give the model an img_aux_head (FirstHitHead)."
            )
        return seen

    def _is_inside(self, points: Tensor) -> Tensor:
        """Return bool ``[n]``, whether points ``[n, 3]`` (metres) lie inside the grid."""
        share = self.normalise(points.to(self.pc_range))
        return ((share >= 0) & (share < 1)).all(1)

    def _spread_of(self, surfaces: SeenSurfaces) -> SeenSurfaces:
        """Return ``num_seen_queries`` evenly spread points on surfaces.

        Existing points come first in ``surfaces``. Some of the result do not exist if there are too
        few.
        """
        # never selected, except to fill the list
        points = torch.where(surfaces.exists[:, None], surfaces.points.float(), math.nan)
        number = min(self.num_seen_queries, len(points))
        spread = surfaces.take(ops.farthest_point_sampling(points, number))
        enough = torch.arange(number, device=points.device) < surfaces.exists.sum()
        return replace(spread, exists=enough)

    def _initial_points(self, batch_size: int, lidar: LidarInput | None) -> Tensor:
        """Return the learned points or LiDAR points ``[B, Q, 1, 3]``, normalised."""
        if not self.use_lidar:
            return self.init_points.weight.view(1, -1, 1, 3).expand(batch_size, -1, -1, -1)
        if lidar is None:
            raise ModelConfigError(
                "The head has use_lidar=True and got no LiDAR points: load them."
            )
        num_current = lidar.num_current or LidarInput.count_current(lidar.points)
        starts = [
            self._farthest_points(points, points[:, 4] == 0, count)
            for points, count in zip(lidar.points, num_current.read(), strict=True)
        ]
        return torch.stack(starts).unsqueeze(2)

    @torch.no_grad()
    def _farthest_points(self, points: Tensor, is_current: Tensor, count: int) -> Tensor:
        """Return Q evenly spread points, normalised.

        Args:
            points: ``[n, 5]``.
            is_current: bool ``[n]``, points of the current sweep.
            count: Number of these.
        """
        if not count:  # an empty sweep: fixed points, so that the cameras are still used
            return _even_spread(self.num_query).to(self.pc_range)
        current = points[positions(is_current, count), :3]
        index = ops.farthest_point_sampling(current, self.num_query)
        return self.normalise(current[index].to(self.pc_range))


def _even_spread(number: int) -> Tensor:
    """Return points ``[number, 3]`` spread over the unit cube (Roberts' R3 sequence)."""
    ratio = 1.2207440846057596  # the real root of x^4 = x + 1
    steps = torch.tensor([ratio**-1, ratio**-2, ratio**-3], dtype=torch.float64)
    return (0.5 + torch.arange(1, number + 1).unsqueeze(1) * steps) % 1
