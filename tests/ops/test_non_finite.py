"""Native operations return non-finite numbers where their reference implementations do.

An operation that turns NaN, infinity or an overflow into ordinary numbers would hide a diverging
training. Some hundreds of seeded cases of every differentiable operation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from models import ops

ODD = (math.nan, math.inf, -math.inf, 1e20, -1e20, 1e30, -1e30, 3e38, -3e38, 1e10, 1e-40)

Case = tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor], list[int]]


def make_odd(rng: random.Random, tensor: Tensor) -> Tensor:
    """Put odd values into the tensor: everywhere, at a few positions, or as a factor."""
    value, flat = rng.choice(ODD), tensor.flatten().clone()
    kind = rng.choice(("all", "few", "few", "times"))
    if kind == "all":
        flat.fill_(value)
    elif kind == "times":
        flat *= value
    else:
        for _ in range(rng.choice((1, 3))):
            flat[rng.randrange(len(flat))] = value
    return flat.view(tensor.shape)


def sampling(rng: random.Random) -> Case:
    queries, groups, points = rng.choice((1, 5)), rng.choice((1, 2)), rng.choice((1, 3))
    cams, frames, channels = rng.choice((1, 6)), rng.choice((1, 2)), rng.choice((1, 4, 8, 12))
    shape = (1, cams * frames, groups * channels)
    maps = [torch.randn(*shape, 8 >> i, 12 >> i) for i in range(rng.choice((1, 3)))]
    if rng.random() < 0.5:
        maps = [x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for x in maps]
    weights = torch.randn(1, queries, groups, points, len(maps)).softmax(-1)
    tensors = [torch.randn(1, queries, groups, points, 3) * 5,
               torch.randn(1, cams * frames, 4, 4) * 10, weights, *maps]  # fmt: skip

    def call(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda p, m, w, *feats: function(feats, p, m, w, (32, 48), cams)

    return call(ops.multi_view_sampling), call(ops.multi_view_sampling_reference), tensors, [0, 2]


def mixing(rng: random.Random) -> Case:
    n, s_in = rng.choice((1, 3)), rng.choice((1, 4, 12))
    c, s_out = rng.choice((1, 4, 16, 64)), rng.choice((1, 3, 32))
    tensors = [torch.randn(n, s_in, c), torch.randn(n, c * c + s_in * s_out)]
    dtype = rng.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16))

    def call(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, p: function(x.to(dtype), p.to(dtype), s_out)

    return call(ops.adaptive_mixing), call(ops.adaptive_mixing_reference), tensors, [0, 1]


def attention(rng: random.Random) -> Case:
    b, h, q, d = rng.choice((1, 2)), rng.choice((1, 3)), rng.choice((1, 9, 70)), rng.choice((4, 8))
    tensors = [*(torch.randn(b, h, q, d) for _ in range(3)), torch.rand(b, h, q)]
    tensors += [torch.randn(b, q, 3) * 10]
    return ops.distance_attention, ops.distance_attention_reference, tensors, [0, 1, 2, 3]


def focal_loss(rng: random.Random) -> Case:
    n, k = rng.choice((1, 40)), rng.choice((1, 17))
    labels = torch.randint(0, k + 1, (n,))
    rows = torch.rand(n)

    def call(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w, r: function(x, labels, w, r)

    functions = call(ops.sigmoid_focal_loss), call(ops.sigmoid_focal_loss_reference)
    return *functions, [torch.randn(n, k), torch.rand(k), rows], [0]


def chamfer(rng: random.Random) -> Case:
    n, m = rng.choice((1, 30)), rng.choice((1, 20))
    index = torch.randint(0, m, (n,))

    def call(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda q, r: function(q, r, index, 0.2)

    functions = call(ops.chamfer_terms), call(ops.chamfer_terms_reference)
    return *functions, [torch.randn(n, 3), torch.randn(m, 3)], [0, 1]


def maximum(rng: random.Random) -> Case:
    n, m, c = rng.choice((1, 50)), rng.choice((1, 12)), rng.choice((1, 9, 32))
    index = torch.randint(0, m, (n,))

    def call(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x: function(x, index, m)

    return call(ops.voxel_max), call(ops.voxel_max_reference), [torch.randn(n, c)], [0]


def sparse(rng: random.Random) -> Case:
    coords = (torch.rand(2, 4, 5, 3) < 0.4).nonzero()
    kernel_map = ops.build_kernel_map(coords, (4, 5, 3), 3, 1, 1, rng.random() < 0.5)
    c_in, c_out = rng.choice((1, 4, 9)), rng.choice((2, 16, 18))
    tensors = [torch.randn(len(coords), c_in), torch.randn(c_out, 3, 3, 3, c_in)]
    tensors.append(torch.randn(c_out))

    def call(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w, b: function(x, w, b, kernel_map)

    return call(ops.sparse_conv), call(ops.sparse_conv_reference), tensors, [0, 1]


def finite_parts(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], wanted: list[int]
) -> list[Tensor]:
    """Return where the output and the gradients are finite."""
    inputs = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(tensors)]
    out = function(*inputs)
    grads = torch.autograd.grad(out, [inputs[i] for i in wanted], torch.ones_like(out))
    return [x.isfinite() for x in (out, *grads)]


CASES: dict[str, Callable[[random.Random], Any]] = {
    "multi_view_sampling": sampling, "adaptive_mixing": mixing, "distance_attention": attention,
    "sigmoid_focal_loss": focal_loss, "chamfer_terms": chamfer, "voxel_max": maximum,
    "sparse_conv": sparse,
}  # fmt: skip


def check(name: str, seeds: range) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        torch.manual_seed(seed)
        native, reference, tensors, wanted = CASES[name](rng)
        chosen = rng.randrange(len(tensors))
        tensors[chosen] = odd = make_odd(rng, tensors[chosen])
        ours, theirs = (
            finite_parts(native, tensors, wanted),
            finite_parts(reference, tensors, wanted),
        )
        pairs = list(zip(ours, theirs, strict=True))
        # Sums overflow in the order of their terms. Where finite numbers are so large that this
        # matters, the gradients of all operations, and the output of an attention whose weighted
        # sum is divided last, may differ.
        in_range = (odd.abs()[odd.isfinite()] < 1e15).all()
        exact = pairs if in_range else pairs[:1]
        if not in_range and name == "distance_attention":
            assert not (ours[0] & ~theirs[0]).any(), (seed, chosen)
            continue
        for i, (a, b) in enumerate(exact):
            assert torch.equal(a, b), (seed, chosen, ["output", *wanted][i])


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_reference(name: str) -> None:
    check(name, range(150))


@pytest.mark.parametrize("switch", ["OPUS_DISABLE_AVX2", "OPUS_DISABLE_AVX512"])
def test_other_instruction_sets(run_in_new_process: Callable[..., None], switch: str) -> None:
    run_in_new_process(
        """
import sys
sys.path.insert(0, "tests/ops")
from test_non_finite import check
for name in ("multi_view_sampling", "adaptive_mixing"):
    check(name, range(40))
""",
        **{switch: "1"},
    )


def test_variance_that_overflows_is_not_hidden() -> None:
    sampled, parameters = torch.full((1, 4, 8), 1e25), torch.randn(1, 8 * 8 + 4 * 3)
    for function in (ops.adaptive_mixing, ops.adaptive_mixing_reference):
        assert function(sampled, parameters, 3).isnan().all()


def test_focal_loss_beyond_the_largest_number() -> None:
    logits, labels = torch.full((2, 1), 3e38), torch.ones(2, dtype=torch.int64)
    for function in (ops.sigmoid_focal_loss, ops.sigmoid_focal_loss_reference):
        assert function(logits, labels, torch.full((1,), 1e3)).item() == math.inf
        # the label of an infinite logit is right
        right = torch.full((1, 1), math.inf)
        assert function(right, torch.zeros(1, dtype=torch.int64), torch.ones(1)).item() == 0
