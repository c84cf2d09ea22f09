from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.ops import chamfer_terms, chamfer_terms_reference

BETA = 0.2


def case(seed: int, n: int, m: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    query, reference = (
        (torch.randn(k, 3, generator=generator, dtype=torch.float64) * 0.3).to(device, dtype)
        for k in (n, m)
    )
    index = torch.randint(-1, m + 1, (n,), generator=generator).to(device)  # also none of them
    return query.requires_grad_(), reference.requires_grad_(), index


@given(seed=st.integers(0, 2**31), n=st.integers(0, 40), m=st.integers(1, 12))
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)],
)
def test_terms_and_gradients_equal_the_reference(
    device: str, seed: int, n: int, m: int, dtype: torch.dtype, tolerance: float
) -> None:
    query, reference, index = case(seed, n, m, dtype, device)
    weight = torch.rand(n, device=device) + 0.5
    results = []
    for function in (chamfer_terms, chamfer_terms_reference):
        terms = function(query, reference, index, BETA)
        grads = torch.autograd.grad((terms * weight).sum(), (query, reference))
        results.append((terms, *grads))
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_references_that_many_points_share(
    device: str, dtype: torch.dtype, tolerance: float
) -> None:
    query, reference, index = case(4, 3000, 5, dtype, device)
    grads = [
        torch.autograd.grad(function(query, reference, index, BETA).sum(), reference)[0]
        for function in (chamfer_terms, chamfer_terms_reference)
    ]
    torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance)


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("need_query", [True, False])
@pytest.mark.usefixtures("deterministic")
def test_deterministic_gradients(device: str, need_query: bool) -> None:
    query, reference, index = case(5, 2000, 3, torch.float32, device)
    query.requires_grad_(need_query)
    leaves = [x for x in (query, reference) if x.requires_grad]

    def grads(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(query, reference, index, BETA).sum(), leaves)

    first, expected = grads(chamfer_terms), grads(chamfer_terms_reference)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)
    for _ in range(3):
        assert all(map(torch.equal, grads(chamfer_terms), first))
    index[:] = 3  # none of them
    assert not any(x.any() for x in grads(chamfer_terms))
    none = reference[:0].detach().requires_grad_()
    terms = chamfer_terms(query, none, index, BETA)
    assert torch.autograd.grad(terms.sum(), none)[0].shape == (0, 3)


def test_no_points(device: str) -> None:
    for n, m in ((0, 5), (4, 0), (0, 0)):
        query, reference = (torch.ones(k, 3, device=device, requires_grad=True) for k in (n, m))
        index = torch.zeros(n, dtype=torch.int64, device=device)
        terms = chamfer_terms(query, reference, index, BETA)
        assert terms.tolist() == [0.0] * n
        terms.sum().backward()
        assert query.grad is not None and query.grad.shape == (n, 3) and not query.grad.any()
        assert reference.grad is not None and reference.grad.shape == (m, 3)


def test_gradcheck(device: str) -> None:
    # away from the kinks at 0 and beta
    query = torch.tensor([[0.05, 1.0, -0.1], [0.3, -0.07, 2.0], [5.0, 5.0, 5.0]], device=device)
    reference = torch.tensor([[0.0, 0.0, 0.0], [0.7, 0.3, 0.1]], device=device)
    inputs = [x.double().requires_grad_() for x in (query, reference)]
    index = torch.tensor([0, 1, 1], device=device)
    assert torch.autograd.gradcheck(lambda q, r: chamfer_terms(q, r, index, BETA), inputs)


def test_by_hand(device: str) -> None:
    query = torch.tensor([[1.0, 0.1, 0.0]], device=device, requires_grad=True)
    reference = torch.zeros(1, 3, device=device)
    terms = chamfer_terms(query, reference, torch.zeros(1, dtype=torch.int64, device=device), BETA)
    # 1 - 0.1 in x, 0.5 * 0.01 / 0.2 in y
    assert terms.item() == pytest.approx(0.925)
    terms.sum().backward()
    assert query.grad is not None and query.grad[0].tolist() == pytest.approx([1.0, 0.5, 0.0])


def test_nan_stays_where_it_is(device: str) -> None:
    query = torch.tensor([[float("nan"), 0, 0], [1.0, 0, 0]], device=device, requires_grad=True)
    reference = torch.zeros(2, 3, device=device)
    terms = chamfer_terms(query, reference, torch.tensor([0, 1], device=device), BETA)
    assert terms.isnan().tolist() == [True, False]
    terms.sum().backward()
    assert query.grad is not None and query.grad.isnan().any(1).tolist() == [True, False]


def test_backward_keeps_the_arguments_alone() -> None:
    query, reference, index = case(0, 1000, 50, torch.float32, "cpu")
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        chamfer_terms(query, reference, index, BETA)
    assert {x.data_ptr() for x in kept} == {x.data_ptr() for x in (query, reference, index)}


def test_strided_arguments(device: str) -> None:
    query, reference, index = case(1, 30, 9, torch.float32, device)
    strided = (query.detach().t().contiguous().t(), torch.cat([reference.detach()] * 2, 1)[:, :3])
    ours = chamfer_terms(*strided, index.repeat_interleave(2)[::2], BETA)
    assert torch.equal(ours, chamfer_terms(query, reference, index, BETA))


def test_bad_arguments(device: str) -> None:
    query, reference, index = case(2, 4, 5, torch.float32, device)
    with pytest.raises(ValueError, match=r"query must be \[N, 3\], got \[4, 2\]"):
        chamfer_terms(query[:, :2], reference, index, BETA)
    with pytest.raises(ValueError, match=r"index must be int64 \[4\], got Int \[4\]"):
        chamfer_terms(query, reference, index.int(), BETA)
    with pytest.raises(ValueError, match="one dtype, got Float and Double"):
        chamfer_terms(query, reference.double(), index, BETA)
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        chamfer_terms(query, reference, index, 0.0)


def test_opcheck(device: str) -> None:
    torch.library.opcheck(
        torch.ops.opus.chamfer_terms.default, (*case(3, 8, 5, torch.float64, device), BETA)
    )
