"""Time distance-biased self-attention against its reference and a materialised mask.

    python benchmarks/bench_distance_attention.py [--device cpu|cuda] [--dtype float32|…]
        [--sizes t,s,m,l] [--threads N] [--repeats N]

"mask" builds the bias [B, H, Q, Q] and passes it to torch's `scaled_dot_product_attention`. tau is
uniform over [0, 2) as at the start of training. "no fading" has tau = 0, so that no block can be
skipped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks import compare
from benchmarks.common import Report, parse_arguments
from benchmarks.decoder_cases import CHANNELS, HEADS, VARIANTS, query_centres
from models import ops


def masked_attention(q: Tensor, k: Tensor, v: Tensor, tau: Tensor, centres: Tensor) -> Tensor:
    with torch.no_grad():
        distance = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
    bias = (-tau.unsqueeze(-1) * distance.unsqueeze(1)).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def bench(name: str, fades: bool, args: argparse.Namespace) -> list[compare.Row]:
    variant = VARIANTS[name]
    Q, d = variant.queries, CHANNELS // HEADS
    dtype = getattr(torch, args.dtype)
    q, k, v = torch.randn(1, Q, 3, HEADS, d).to(args.device, dtype).permute(2, 0, 3, 1, 4)
    tau = (2.0 * fades * torch.rand(1, HEADS, 1)).expand(1, HEADS, Q).contiguous().to(args.device)
    centres = query_centres(Q).to(args.device)
    leaves = [x.requires_grad_() for x in (q, k, v, tau)]
    functions = {
        "ours": lambda: ops.distance_attention(q, k, v, tau, centres),
        "reference": lambda: ops.distance_attention_reference(q, k, v, tau, centres),
        "mask": lambda: masked_attention(q, k, v, tau, centres),
    }
    case = variant.name if fades else f"{variant.name} no fading"
    gigaflop = 4e-9 * Q * Q * CHANNELS
    return compare.forward_and_backward(
        case, functions, leaves, args, gigaflop=gigaflop, tolerance=1e-3
    )


def main() -> None:
    args = parse_arguments(
        __doc__, repeats=7, sizes="t,s,m,l", dtypes=("float32", "float16", "bfloat16")
    )
    report = Report("distance_attention", args)
    sizes = args.sizes.split(",")
    rows = [row for name in sizes for row in bench(name, True, args)]
    rows += bench(sizes[-1], False, args)
    compare.add_table(report, rows)
    smallest, largest = VARIANTS[sizes[0]], VARIANTS[sizes[-1]]
    for case in (largest.name, f"{largest.name} no fading"):
        for kind in ("forward", "both"):
            ratio = compare.row_of(rows, f"{case} {kind}").ratio("mask")
            name = f"distance_attention:{case}_{kind}_over_mask".replace(" ", "_")
            report.aim(name, ratio, 2.0)
    if smallest is not largest:
        # Linear memory grows with Q, the memory of the mask with Q squared.
        first = compare.row_of(rows, f"{smallest.name} both").of["ours"].mib
        last = compare.row_of(rows, f"{largest.name} both").of["ours"].mib
        growth = largest.queries / smallest.queries / (last / max(first, 1.0))
        report.aim("distance_attention:growth_of_Q_over_growth_of_peak_memory", growth, 0.8)
    report.end()


if __name__ == "__main__":
    main()
