"""Count pairs, bytes and visited tiles of one layer's attention on a GPU; nothing is timed.

    python benchmarks/count_attention.py [--sizes t,l]

A tile of 32 keys is skipped by a warp of 32 queries if no weight in it can matter, by the rule of
`models/csrc/distance_attention/distance_attention_cuda.cu`, with the largest logit known. Queries
and keys have the variance of an untrained layer, centres are those of the other benchmarks.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks.decoder_cases import CHANNELS, HEADS, VARIANTS, query_centres
from models import ops

TILE = 32
RATES = (1.0, 2.0)  # 1/m, the mean and the largest initial one
SPREAD = math.sqrt(0.5)  # of normalised features after projections with Xavier's weights
PRODUCTS, OTHERS = 4 * CHANNELS // HEADS, 12  # operations of a pair


def visited_share(queries: int, rate: float, seed: int = 0) -> float:
    """Return the share of pairs of tiles that a head visits.

    Args:
        queries: Q.
        rate: Decay of the logits, 1/m.
        seed: Random seed of queries, keys and centres.
    """
    torch.manual_seed(seed)
    centres = query_centres(queries)
    centres = centres[0, ops.attention_order(centres)[0]].double()
    query, key = SPREAD * torch.randn(2, queries, CHANNELS // HEADS, dtype=torch.float64)
    return float(visited_tiles(query, key, centres, rate).double().mean())


def visited_tiles(query: Tensor, key: Tensor, centres: Tensor, rate: float) -> Tensor:
    """Return which tiles of keys each tile of queries visits, bool `[tiles, tiles]`.

    Args:
        query: `[Q, d]`.
        key: `[Q, d]`.
        centres: `[Q, 3]`, metres.
        rate: Decay of the logits, 1/m.
    """
    queries, depth = query.shape
    logits = query @ key.T / math.sqrt(depth) - rate * torch.cdist(centres, centres)
    needed = logits.amax(1) - negligible_gap(queries)  # [Q]
    nearest = torch.stack([distance_to_box(centres, box) for box in centres.split(TILE)], 1)
    norms = torch.stack([part.norm(dim=1).amax() for part in key.split(TILE)])
    bounds = query.norm(dim=1)[:, None] * norms / math.sqrt(depth) - rate * nearest  # [Q, tiles]
    matters = bounds >= needed[:, None]
    return torch.stack([part.any(0) for part in matters.split(TILE)])


def negligible_gap(queries: int) -> float:
    """Return the difference to the largest logit above which all weights together round off."""
    return -math.log(torch.finfo(torch.float32).eps) + 2 + math.log(queries)


def distance_to_box(points: Tensor, inside: Tensor) -> Tensor:
    """Return the distances `[n]` of points `[n, 3]` to the bounding box of others."""
    low, high = inside.aminmax(dim=0)
    return torch.maximum(low - points, points - high).clamp(min=0).norm(dim=1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="t,l", help=f"of {', '.join(VARIANTS)}")
    args = parser.parse_args(arguments)
    print("| | queries | M pairs | GFLOP, products | distances | MB of a bias | tiles visited |")
    print("|---|---|---|---|---|---|---|")
    for name in args.sizes.split(","):
        variant = VARIANTS[name]
        pairs = HEADS * variant.queries**2
        shares = " to ".join(f"{100 * visited_share(variant.queries, r):.0f} %" for r in RATES)
        print(
            f"| {variant.name} | {variant.queries:,} | {1e-6 * pairs:.1f} | "
            f"{1e-9 * PRODUCTS * pairs:.1f} | {1e-9 * OTHERS * pairs:.2f} | "
            f"{2e-6 * pairs:.1f} | {shares} |"
        )


if __name__ == "__main__":
    main()
