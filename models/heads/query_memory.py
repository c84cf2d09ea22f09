"""Streaming memory: the best queries of a frame are passed to the next frame.

Dimension letters: B batch, Q queries, K queries that are kept, R points of a query, C embedding
channels, V queries that were recalled for a sample (0 or at most K).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from models.bounded_cache import BoundedCache
from models.errors import ModelConfigError


@dataclass(frozen=True)
class SequenceFrame:
    """Position of a sample in its sequence.

    Attributes:
        sequence: Key shared by the frames of one drive; memory does not cross sequences.
        index: Index of the frame in its scene.
        is_first: Whether it is the first frame of the scene.
        ego2global: float64 ``[4, 4]``, metres.
        time_s: Seconds.
        ego2occ: float64 ``[4, 4]`` of the sample, metres.
    """

    sequence: tuple[Hashable, ...]
    index: int
    is_first: bool
    ego2global: Tensor
    time_s: float
    ego2occ: Tensor

    @classmethod
    def of(cls, sample: BaseDataElement) -> SequenceFrame | None:
        """Return the position of a sample; None for a single frame in training.

        Raises:
            ModelConfigError: If the sample's metainfo lacks it.
        """
        meta = sample.metainfo
        missing = [key for key in ("frame_index", "ego2global", "timestamp") if key not in meta]
        if missing:
            raise ModelConfigError(
                f"Query propagation needs {missing[0]} in the metainfo of every sample: use "
                "PackOccSample in the pipeline, or set model.pts_bbox_head.memory=None."
            )
        if meta.get("sequence_id") is None:
            return None
        return cls(
            (meta["sequence_id"], meta.get("scene_token") or meta["scene_name"]),
            int(meta["frame_index"]),
            int(meta["frame_index"]) == 0,
            torch.as_tensor(meta["ego2global"], dtype=torch.float64, device="cpu"),
            int(meta["timestamp"]) * 1e-6,
            sample.ego2occ.detach().double().cpu(),
        )


@dataclass(frozen=True)
class KeptQueries:
    """Queries kept from a frame, without gradient.

    Attributes:
        feats: ``[K, C]``.
        centres_m: ``[K, 3]``, metres of the frame's occ frame.
        frame: The frame.
    """

    feats: Tensor
    centres_m: Tensor
    frame: SequenceFrame


@MODELS.register_module()
class QueryMemory(nn.Module):
    """Keep the best queries of a frame for the next frame of its scene.

    The K queries of a frame with the highest scores are kept, without gradient. In the next frame
    their centres move with the ego vehicle, and their features pass a layer norm whose scale and
    shift depend on the change of pose and time (the idea of StreamPETR, arXiv 2303.11926). Queries
    whose centre has left the grid are dropped. A frame is followed only by the next one of the same
    sequence; everything else starts without memory.

    In evaluation every frame but the first of a scene must follow its predecessor.

    Args:
        embed_dims: C.
        num_kept: K.
        hidden_dims: Hidden channels of the network on the change of pose and time.
        max_frames: Maximum number of frames in memory: at least two for every sample of a batch.
    """

    def __init__(
        self, embed_dims: int, num_kept: int, hidden_dims: int = 64, max_frames: int = 32
    ) -> None:
        super().__init__()
        if num_kept < 1:
            raise ModelConfigError(f"num_kept is {num_kept}: use at least 1, or memory=None.")
        self.num_kept = num_kept
        self.norm = nn.LayerNorm(embed_dims, elementwise_affine=False)
        modulation = nn.Linear(hidden_dims, 2 * embed_dims)
        nn.init.zeros_(modulation.weight)
        nn.init.zeros_(modulation.bias)
        self.modulation = nn.Sequential(nn.Linear(13, hidden_dims), nn.ReLU(), modulation)
        # Training and evaluation have separate memories: evaluations run between training steps.
        self._training_frames = BoundedCache[KeptQueries](max_frames)
        self._evaluation_frames = BoundedCache[KeptQueries](max_frames)

    @property
    def _frames(self) -> BoundedCache[KeptQueries]:
        return self._training_frames if self.training else self._evaluation_frames

    def train(self, mode: bool = True) -> QueryMemory:
        """Set the mode, and clear the memory of the last evaluation."""
        self._evaluation_frames.clear()
        return super().train(mode)

    def recall(self, frames: Sequence[SequenceFrame | None]) -> list[tuple[Tensor, Tensor] | None]:
        """Return the queries that each sample of a batch inherits from its previous frame.

        Args:
            frames: Position of every sample, see ``SequenceFrame.of``.

        Returns:
            Per sample centres ``[K, 3]`` in metres of its occ frame, without gradient, and features
            ``[K, C]``; None if there is nothing to inherit.

        Raises:
            ModelConfigError: If an evaluation is not in order.
        """
        return [None if frame is None else self._recall(frame) for frame in frames]

    def _recall(self, frame: SequenceFrame) -> tuple[Tensor, Tensor] | None:
        if frame.is_first:
            return None
        key = (*frame.sequence, frame.index - 1)
        if key not in self._frames:
            if self.training:
                return None
            raise ModelConfigError(
                f"Frame {frame.index} of scene {frame.sequence[-1]} came without the frame before "
                "it, from which its queries are propagated: evaluate every scene from its first "
                "frame on, one sample at a time and in order (SceneSampler with shuffle=False, "
                "batch_size=1), or set model.pts_bbox_head.memory=None."
            )
        kept = self._frames[key]
        moved = occ_to_occ(kept.frame, frame)
        parameter = next(self.modulation.parameters())
        motion = _sent(ego_motion(kept.frame, frame), parameter)
        scale, shift = self.modulation(motion).chunk(2)
        feats = self.norm(kept.feats.to(parameter)) * (1 + scale) + shift
        turn, lag = _sent(moved[:3], kept.centres_m).split([3, 1], dim=1)
        return kept.centres_m @ turn.T + lag.squeeze(1), feats

    def no_effect(self) -> Tensor:
        """Return a zero whose graph reaches all weights."""
        zeros = next(self.modulation.parameters()).new_zeros(13)
        return torch.as_tensor(self.modulation(zeros).sum() * 0)

    @torch.no_grad()
    def keep(
        self,
        frames: Sequence[SequenceFrame | None],
        query_feats: Tensor,
        centres_m: Tensor,
        scores: Tensor,
    ) -> None:
        """Store the best queries of a batch.

        Args:
            frames: Position of every sample.
            query_feats: ``[B, Q, C]``.
            centres_m: ``[B, Q, 3]``, metres of the occ frame.
            scores: ``[B, Q]``; of equal scores the lower index is kept.
        """
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.num_kept]
        for frame, feats, centres, index in zip(frames, query_feats, centres_m, best, strict=True):
            if frame is not None:
                kept = KeptQueries(feats[index].detach(), centres[index].detach(), frame)
                self._frames.put((*frame.sequence, frame.index), kept)
                # The previous frame is kept: a batch in parts is run forward twice.
                self._frames.drop((*frame.sequence, frame.index - 2))

    def training_state(self) -> list[dict[str, Any]]:
        """Return the memory of a training as plain values and tensors on the CPU."""
        entries = self._training_frames
        return [
            dict(
                sequence=list(kept.frame.sequence),
                index=kept.frame.index,
                ego2global=kept.frame.ego2global,
                time_s=kept.frame.time_s,
                ego2occ=kept.frame.ego2occ,
                feats=kept.feats.cpu(),
                centres_m=kept.centres_m.cpu(),
            )
            for kept in entries.values()
        ]

    def restore_training_state(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Restore the memory of a training from its checkpoint."""
        self._training_frames.clear()
        device = next(self.modulation.parameters()).device
        for entry in state:
            frame = SequenceFrame(
                tuple(entry["sequence"]),
                int(entry["index"]),
                int(entry["index"]) == 0,
                entry["ego2global"],
                float(entry["time_s"]),
                entry["ego2occ"],
            )
            feats, centres = (entry[key].to(device) for key in ("feats", "centres_m"))
            self._training_frames.put(
                (*frame.sequence, frame.index), KeptQueries(feats, centres, frame)
            )


def occ_to_occ(before: SequenceFrame, now: SequenceFrame) -> Tensor:
    """Return float64 ``[4, 4]`` from the occ frame of one frame to that of a later one.

    The BEV augmentations of both frames are included.
    """
    return now.ego2occ @ _ego_to_ego(before, now) @ torch.linalg.inv(before.ego2occ)


def ego_motion(before: SequenceFrame, now: SequenceFrame) -> Tensor:
    """Return the change of pose and time between two frames, float64 ``[13]``.

    It holds rotation and translation (metres) from the occ frame of one frame to that of a later
    one, row by row, and the seconds between them.
    """
    moved = occ_to_occ(before, now)[:3].flatten()
    return torch.cat([moved, moved.new_tensor([now.time_s - before.time_s])])


def _sent(matrix: Tensor, like: Tensor) -> Tensor:
    """Copy a matrix of the host to the device and dtype of a tensor, without synchronisation."""
    return matrix.to(like.device, like.dtype, non_blocking=True)


def _ego_to_ego(before: SequenceFrame, now: SequenceFrame) -> Tensor:
    return torch.linalg.inv(now.ego2global) @ before.ego2global


def farthest_first(points: Tensor, others: Tensor) -> Tensor:
    """Rank points by their distance from the nearest of other points.

    Args:
        points: ``[n, 3]``.
        others: ``[m, 3]``, at least one; infinite ones are ignored.

    Returns:
        int64 ``[n]``, the indices of the points, the farthest first; of points at equal distance
        the lower index comes first.
    """
    distance = torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    return distance.sort(descending=True, stable=True).indices
