"""Run the detector with plain PyTorch, as the baseline of the model benchmarks.

Weights and results are the same. Images and maps are NCHW, batch norms are not folded, frames of a
stream are stacked for every sample, sampling is `grid_sample` per level, and all other operations
are their reference implementations.

Dimension letters: B batch, T frames, N cameras, C channels, h, w size of a map, H, W image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.field_sampling import field_sampling
from models import ops
from models.bounded_cache import BoundedCache
from models.detectors import OPUS
from models.detectors.opus import _keys_of
from scripts.golden.heads import plain_operations


class PlainStream:
    """Cache the maps of a stream's frames one by one, and stack them for every sample."""

    def __init__(self, model: OPUS) -> None:
        self.model = model
        self.cache: BoundedCache[list[Tensor]] = BoundedCache(model.cache.limit)

    def features(self, images: Tensor) -> list[Tensor]:
        """Map images [..., 3, H, W] to maps [..., C, h, w]."""
        model = self.model
        levels = model.img_neck(model.img_backbone(images.flatten(0, -4).contiguous()))
        return [level.unflatten(0, images.shape[:-3]) for level in levels]

    def extract(
        self, images: Tensor, data_samples: Sequence[Any], _: object = None
    ) -> list[Tensor]:
        """Replace `OPUS.extract_feat`; only new images of [B, T*N, 3, H, W] are computed."""
        num_cams = self.model.pts_bbox_head.num_cams
        if not (self.model.streaming and not self.model.training):
            return self.features(images)
        frames = images.unflatten(1, (-1, num_cams)).flatten(0, 1)
        keys = [key for sample in _keys_of(data_samples, num_cams) for key in sample]
        for key, frame in zip(keys, frames, strict=True):
            if key not in self.cache:
                self.cache.put(key, self.features(frame))
        kept = [self.cache[key] for key in keys]
        stacked = [torch.stack(level) for level in zip(*kept, strict=True)]
        return [level.unflatten(0, (len(images), -1)).flatten(1, 2) for level in stacked]


@contextmanager
def plain_head() -> Iterator[None]:
    """Run heads with plain PyTorch inside the context."""
    with plain_operations(), mock.patch.object(ops, "multi_view_sampling", field_sampling):
        yield


@contextmanager
def plain_way(model: OPUS, stream: PlainStream) -> Iterator[None]:
    """Run a model with plain PyTorch inside the context."""
    with ExitStack() as stack:
        stack.enter_context(plain_head())
        stack.enter_context(mock.patch.object(model, "extract_feat", stream.extract))
        # Upload and normalise all frames.
        stack.enter_context(mock.patch.object(type(model), "test_step", _plain_test_step))
        yield


def _plain_test_step(self: OPUS, data: dict[str, Any]) -> Any:
    return self._run_forward(self.data_preprocessor(data, False), mode="predict")
