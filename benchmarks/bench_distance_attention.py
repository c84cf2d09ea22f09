"""Times distance-biased self-attention against its twin and a materialised mask.

    python -m benchmarks.bench_distance_attention [--device cpu|cuda] [--dtype float32|…]
        [--sizes t,s,m,l] [--threads N] [--repeats N]

"mask" builds the bias [B, H, Q, Q] and gives it to torch's ``scaled_dot_product_attention``. tau is
uniform over [0, 2) as at the start of training; "no fading" has tau = 0, where no block can be
skipped.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import compare
from benchmarks.decoder_cases import CHANNELS, HEADS, VARIANTS, query_centres
from models import ops


def masked_attention(q: Tensor, k: Tensor, v: Tensor, tau: Tensor, centres: Tensor) -> Tensor:
    with torch.no_grad():
        distance = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
    bias = (-tau.unsqueeze(-1) * distance.unsqueeze(1)).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def bench(name: str, fades: bool, args: compare.Arguments) -> list[compare.Row]:
    variant = VARIANTS[name]
    Q, d = variant.queries, CHANNELS // HEADS
    dtype = getattr(torch, args.dtype)
    q, k, v = torch.randn(1, Q, 3, HEADS, d).to(args.device, dtype).permute(2, 0, 3, 1, 4)
    tau = (2.0 * fades * torch.rand(1, HEADS, 1)).expand(1, HEADS, Q).contiguous().to(args.device)
    centres = query_centres(Q).to(args.device)
    leaves = [x.requires_grad_() for x in (q, k, v, tau)]
    functions = {
        "ours": lambda: ops.distance_attention(q, k, v, tau, centres),
        "twin": lambda: ops.distance_attention_reference(q, k, v, tau, centres),
        "mask": lambda: masked_attention(q, k, v, tau, centres),
    }
    with torch.no_grad():
        expected = functions["twin"]()
        for function in functions.values():
            torch.testing.assert_close(function(), expected, rtol=1e-3, atol=1e-3)
    case = variant.name if fades else f"{variant.name} no fading"
    gigaflop = 4e-9 * Q * Q * CHANNELS
    return compare.forward_and_backward(case, functions, leaves, args, gigaflop=gigaflop)


def main() -> None:
    args = compare.parse(
        __doc__, sizes="t,s,m,l", dtypes=("float32", "float16", "bfloat16")
    )  # fmt: skip
    rows = [row for name in args.sizes for row in bench(name, True, args)]
    rows += bench(args.sizes[-1], False, args)
    compare.report("distance_attention", rows, args)
    largest = VARIANTS[args.sizes[-1]]
    for case in (largest.name, f"{largest.name} no fading"):
        for kind in ("forward", "both"):
            row = compare.row_of(rows, f"{case} {kind}")
            assert row is not None
            aim = f"attention {kind} {case}, times the materialised mask"
            compare.aim(args, aim, row.ratio("mask"), 2.0)
    first = compare.row_of(rows, f"{VARIANTS[args.sizes[0]].name} both")
    last = compare.row_of(rows, f"{largest.name} both")
    if first and last and first is not last:
        # linear memory grows as Q does, that of the mask as Q squared
        growth = largest.queries / VARIANTS[args.sizes[0]].queries
        grown = last.mib["ours"] / max(first.mib["ours"], 1.0)
        compare.aim(args, "attention memory, growth of Q over growth of peak", growth / grown, 0.8)


if __name__ == "__main__":
    main()
