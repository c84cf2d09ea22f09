"""An optimiser step that accumulates the gradient over parts of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from itertools import pairwise
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import Tensor

from scripts.runtime.batch_norm_sync import learned_statistics


def accumulated_step(
    model: Any, data: Any, optim_wrapper: OptimWrapper, parts: int
) -> dict[str, Tensor]:
    """Update a model as `train_step` does, with only a part of the batch in memory at a time.

    A model with a `loss_normalizer` divides its losses by counts over the whole batch, so it runs
    twice. The first run counts all parts; it computes no gradient and leaves batch-norm statistics
    and torch's generator unchanged. The second run computes the gradients. Their sum is the
    gradient of the whole batch, except that batch norms in training mode normalise each part
    separately.

    Args:
        model: The model, or its data-parallel wrapper.
        data: Collated batch of this process: lists or tensors with one entry per sample, in nested
            dicts.
        optim_wrapper: Optimiser.
        parts: Number of parts; a smaller batch is split into single samples.

    Returns:
        Losses of the batch by name, for the log.
    """
    pieces = split_batch(data, parts)
    bare = model.module if is_model_wrapper(model) else model
    normalizer = getattr(bare, "loss_normalizer", None)
    logs: list[dict[str, Tensor]] = []
    with ExitStack() as stack:
        if len(pieces) > 1 and normalizer is not None and normalizer.needs_counting:
            _count(bare, pieces, optim_wrapper, normalizer)
            stack.enter_context(normalizer.dividing_by_counted())
        for i, piece in enumerate(pieces):
            is_last = i == len(pieces) - 1
            alone = nullcontext() if is_last or bare is model else model.no_sync()
            with alone:  # synchronise gradients once, after the last part
                with optim_wrapper.optim_context(model):
                    inputs = bare.data_preprocessor(piece, True)
                    losses = model._run_forward(inputs, mode="loss")
                loss, log = bare.parse_losses(losses)
                optim_wrapper.backward(loss / len(pieces))
            logs.append(log)
    optim_wrapper.step()
    optim_wrapper.zero_grad()
    return {name: torch.stack([log[name] for log in logs]).mean() for name in logs[0]}


def split_batch(data: Any, parts: int) -> list[Any]:
    """Split a collated batch into at most `parts` parts of nearly equal size."""
    size = _batch_size(data)
    parts = min(parts, size)
    edges = [size * i // parts for i in range(parts + 1)]
    return [_slice(data, slice(*pair)) for pair in pairwise(edges)]


def _batch_size(data: Any) -> int:
    while isinstance(data, Mapping):
        data = next(iter(data.values()))
    return len(data)


def _slice(data: Any, which: slice) -> Any:
    if isinstance(data, Mapping):
        return {key: _slice(value, which) for key, value in data.items()}
    return data[which]


def _count(bare: Any, pieces: list[Any], optim_wrapper: OptimWrapper, normalizer: Any) -> None:
    """Count all parts with the normalizer."""
    statistics = list(learned_statistics(bare))
    before = [statistic.clone() for statistic in statistics]
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        normalizer.counting(),
        optim_wrapper.optim_context(bare),
    ):
        for piece in pieces:
            bare._run_forward(bare.data_preprocessor(piece, True), mode="loss")
    for statistic, value in zip(statistics, before, strict=True):
        statistic.copy_(value)
