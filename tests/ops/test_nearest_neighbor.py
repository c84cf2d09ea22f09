from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.ops import nearest_neighbor, nearest_neighbor_reference

DTYPES = [torch.float32, torch.float64]


def assert_same(query: Tensor, reference: Tensor) -> None:
    index, squared = nearest_neighbor(query, reference)
    expected_index, expected_squared = nearest_neighbor_reference(query, reference)
    assert torch.equal(index, expected_index)
    assert torch.equal(squared, expected_squared)
    assert index.dtype == torch.int64 and squared.dtype == query.dtype


def test_known_answer() -> None:
    reference = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]])
    query = torch.tensor([[0.9, 0, 0], [0, 5, 0], [0.5, 0, 0]])  # the last is a tie
    for function in (nearest_neighbor, nearest_neighbor_reference):
        index, squared = function(query, reference)
        assert index.tolist() == [1, 2, 0]
        torch.testing.assert_close(squared, torch.tensor([0.01, 9.0, 0.25]))


@given(data=st.data())
def test_native_equals_twin(data: Any) -> None:
    """Bit for bit, also where many references are equally near."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    dtype = data.draw(st.sampled_from(DTYPES))
    n, m = data.draw(st.integers(0, 60)), data.draw(st.integers(1, 200))
    scale = 10.0 ** data.draw(st.integers(-3, 3))
    query = torch.randn(n, 3, generator=generator, dtype=dtype) * scale
    reference = torch.randn(m, 3, generator=generator, dtype=dtype) * scale
    if data.draw(st.booleans()):
        lattice = data.draw(st.sampled_from([0.5, 2.0, 1000.0])) * scale
        reference = (reference / lattice).round() * lattice
        query = (query / lattice * 2).round() * lattice / 2
    assert_same(query, reference)


@pytest.mark.parametrize("dtype", DTYPES)
def test_voxel_centres(dtype: torch.dtype) -> None:
    reference = (torch.rand(9000, 3) * torch.tensor([100, 100, 16])).floor().unique(dim=0)
    reference = (reference.to(dtype) + 0.5) * 0.4 - 40
    query = torch.cat([reference[::20] + 0.2, torch.rand(300, 3, dtype=dtype) * 80 - 40])
    assert_same(query, reference)


@pytest.mark.parametrize("kind", ["one_point", "collinear", "outlier", "two_clusters"])
def test_degenerate_distributions_stay_right_and_fast(kind: str) -> None:
    m = 40000
    reference = torch.rand(m, 3)
    if kind == "one_point":
        reference[:] = reference[0]
    elif kind == "collinear":
        reference[:, 1:] = 0.25
    elif kind == "outlier":
        reference[77] = 1e8
    else:
        reference[m // 2 :] += 1e4
    query = torch.cat([torch.rand(m - 1, 3) * 2, torch.full((1, 3), 1e9)])
    start = time.perf_counter()
    index, squared = nearest_neighbor(query, reference)
    assert time.perf_counter() - start < 5  # all pairs would be 1.6e9
    some = torch.cat([torch.arange(0, m, 400), torch.tensor([m - 1])])
    expected_index, expected_squared = nearest_neighbor_reference(query[some], reference)
    assert torch.equal(index[some], expected_index)
    assert torch.equal(squared[some], expected_squared)


@pytest.mark.parametrize("function", [nearest_neighbor, nearest_neighbor_reference])
def test_points_that_are_not_finite(function: Callable[..., Any]) -> None:
    nan, inf = math.nan, math.inf
    query = torch.tensor([[nan, 0, 0], [inf, 0, 0], [0, 0, 0], [0, -inf, nan]])
    reference = torch.tensor([[nan, 0, 0], [inf, 0, 0], [3, 0, 0], [0, 2, 0]])
    index, squared = function(query, reference)
    assert index.tolist() == [0, 0, 3, 0]
    assert squared.tolist() == [inf, inf, 4.0, inf]
    index, squared = function(query, torch.full((2, 3), nan))
    assert index.tolist() == [0] * 4 and squared.tolist() == [inf] * 4


@pytest.mark.parametrize("function", [nearest_neighbor, nearest_neighbor_reference])
def test_overflowing_distances_tie(function: Callable[..., Any]) -> None:
    index, squared = function(torch.zeros(2, 3), torch.full((3, 3), 1e30))
    assert index.tolist() == [0, 0] and squared.tolist() == [math.inf] * 2


def test_sizes_and_strides() -> None:
    for n, m in [(0, 1), (1, 1), (5, 1), (1, 9), (7, 11)]:
        assert_same(torch.rand(n, 3), torch.rand(m, 3))
    assert_same(torch.rand(3, 50).t(), torch.rand(40, 6)[:, ::2])


def test_twin_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from sys import modules

    monkeypatch.setattr(modules["models.ops.nearest_neighbor"], "_CHUNK_ELEMENTS", 100)
    assert_same(torch.rand(37, 3), torch.rand(30, 3))


def test_no_gradient() -> None:
    query = torch.rand(4, 3, requires_grad=True)
    _, squared = nearest_neighbor(query, torch.rand(5, 3, requires_grad=True))
    assert not squared.requires_grad


def test_threads_change_nothing(at_threads: Callable[..., Any]) -> None:
    query, reference = torch.rand(9000, 3), torch.rand(8000, 3).mul(50).round().div(50)
    one, two = (at_threads(n, nearest_neighbor, query, reference) for n in (1, 2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def test_bad_arguments() -> None:
    points = torch.rand(4, 3)
    for function in (nearest_neighbor, nearest_neighbor_reference):
        with pytest.raises(ValueError, match=r"query must be \[n, 3\], got \[4, 2\]"):
            function(points[:, :2], points)
        with pytest.raises(ValueError, match="at least one point"):
            function(points, points[:0])
        with pytest.raises(ValueError, match="one dtype"):
            function(points, points.double())
        with pytest.raises(ValueError, match=r"float32 or float64, got torch\.int64"):
            function(points.long(), points.long())


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    torch.library.opcheck(
        torch.ops.opus.nearest_neighbor.default,
        (torch.rand(9, 3, dtype=dtype), torch.rand(5, 3, dtype=dtype)),
    )
