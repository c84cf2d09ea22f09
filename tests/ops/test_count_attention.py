"""The count of tiles that attention visits on a GPU, against the weights of all pairs."""

from __future__ import annotations

import torch

from benchmarks.count_attention import TILE, visited_share, visited_tiles


def test_skipped_tiles_have_weights_that_round_off() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 5 * TILE, 8, dtype=torch.float64)
    centres = 40 * torch.rand(5 * TILE, 3, dtype=torch.float64)
    centres = centres[centres[:, 0].argsort()]
    visited = visited_tiles(query, key, centres, rate=3.0)
    weights = (query @ key.T / 8**0.5 - 3.0 * torch.cdist(centres, centres)).softmax(-1)
    pairs = visited.repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
    skipped = torch.where(pairs, 0.0, weights).sum(1)
    assert skipped.max() < torch.finfo(torch.float32).eps / 4
    assert 0.2 < visited.double().mean() < 0.9 and visited.diagonal().all()


def test_nothing_is_skipped_without_decay() -> None:
    assert visited_share(queries=100, rate=0.0) == 1.0
