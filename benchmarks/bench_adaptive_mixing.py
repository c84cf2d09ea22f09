"""Time adaptive mixing, including its generated parameters, against plain torch.

    python benchmarks/bench_adaptive_mixing.py [--device cpu|cuda] [--dtype float32|…]
        [--sizes t,s,m,l] [--threads N] [--repeats N]

"field" generates the parameters of all queries and groups at once, then multiplies, normalises and
rectifies in separate steps. "ours" is the decoder's way: group by group, with the operation
`adaptive_mixing`. "reference" is the same with the reference implementation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks import compare
from benchmarks.common import Report, parse_arguments
from benchmarks.decoder_cases import CHANNELS, FRAMES, GROUPS, MIXED_POINTS, VARIANTS
from models import ops

c = CHANNELS // GROUPS


def field_mixing(x: Tensor, query: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mix x [Q, G, S_in, c] with query [Q, C]; return [Q, G, S_out, c]."""
    s_in = x.shape[2]
    parameters = F.linear(query, weight, bias).unflatten(1, (GROUPS, -1))
    m = parameters[..., : c * c].unflatten(-1, (c, c))
    s = parameters[..., c * c :].unflatten(-1, (MIXED_POINTS, s_in))
    x = F.relu(F.layer_norm(x @ m, (s_in, c)))
    return F.relu(F.layer_norm(s @ x, (MIXED_POINTS, c)))


def by_groups(
    mix: Callable[[Tensor, Tensor, int], Tensor], x: Tensor, query: Tensor, weight: Tensor,
    bias: Tensor,
) -> Tensor:  # fmt: skip
    parts = [
        mix(group, F.linear(query, w, b), MIXED_POINTS)
        for group, w, b in zip(x.unbind(1), weight.chunk(GROUPS), bias.chunk(GROUPS), strict=True)
    ]
    return torch.stack(parts, 1)


def bench(name: str, args: argparse.Namespace) -> list[compare.Row]:
    variant = VARIANTS[name]
    Q, s_in = variant.queries, FRAMES * variant.points
    per_group = c * c + s_in * MIXED_POINTS
    options = dict(device=args.device, dtype=getattr(torch, args.dtype))
    x = torch.randn(Q, GROUPS, s_in, c, **options)
    query = torch.randn(Q, CHANNELS, **options)
    weight = torch.randn(GROUPS * per_group, CHANNELS, **options) / 16
    bias = torch.randn(GROUPS * per_group, **options)
    leaves = [tensor.requires_grad_() for tensor in (x, query, weight, bias)]
    functions = {
        "ours": lambda: by_groups(ops.adaptive_mixing, *leaves),
        "reference": lambda: by_groups(ops.adaptive_mixing_reference, *leaves),
        "field": lambda: field_mixing(*leaves),
    }
    generated = 2e-9 * Q * CHANNELS * GROUPS * per_group
    mixed = 2e-9 * Q * GROUPS * (s_in * c * c + MIXED_POINTS * s_in * c)
    return compare.forward_and_backward(
        variant.name, functions, leaves, args, gigaflop=generated + mixed, tolerance=2e-2
    )


def main() -> None:
    args = parse_arguments(
        __doc__, repeats=7, sizes="t,s,m,l", dtypes=("float32", "float16", "bfloat16")
    )
    report = Report("adaptive_mixing", args)
    rows = [row for name in args.sizes.split(",") for row in bench(name, args)]
    compare.add_table(report, rows)
    for row in rows:
        name = f"adaptive_mixing:{row.case}_over_field".replace(" ", "_")
        report.aim(name, row.ratio("field"), 1)
    report.end()


if __name__ == "__main__":
    main()
