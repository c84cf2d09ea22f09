from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.ops import farthest_point_sampling, farthest_point_sampling_reference
from models.ops._extension import native

BOTH = [farthest_point_sampling, farthest_point_sampling_reference]


@pytest.mark.parametrize("function", BOTH)
def test_known_answer(function: Callable[..., Tensor], device: str) -> None:
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, -2], [0, 0, 1.0]])
    points = points.to(device)
    # 2 and 3 are equally far: the lowest index wins; then 1 and 4
    assert function(points, 5).tolist() == [0, 2, 3, 1, 4]


@pytest.mark.parametrize("function", BOTH)
def test_more_samples_than_points_repeat_the_first(
    function: Callable[..., Tensor], device: str
) -> None:
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0]], device=device)
    assert function(points, 4).tolist() == [0, 1, 0, 0]
    assert function(torch.ones(1, 3, device=device), 0).shape == (0,)


@pytest.mark.parametrize("function", BOTH)
def test_points_that_are_not_finite_are_passed_over(
    function: Callable[..., Tensor], device: str
) -> None:
    nan, inf = math.nan, math.inf
    points = torch.tensor([[nan, 0, 0], [0, 0, 0], [inf, 0, 0], [1, 0, 0], [3, 0, -inf]])
    assert function(points.to(device), 4).tolist() == [0, 1, 3, 1]
    assert function(torch.full((200, 3), nan, device=device), 3).tolist() == [0, 0, 0]


@given(data=st.data())
def test_native_equals_reference(device: str, data: Any) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    n = data.draw(st.sampled_from([1, 2, 15, 127, 128, 129, 511, 513, 1500]))
    points = torch.randn(n, 3, generator=generator, dtype=dtype) * 20
    if data.draw(st.booleans()):
        points = (points / 10).round()  # many ties
    if data.draw(st.booleans()):
        points[:: data.draw(st.integers(1, 3)), 2] = math.nan
    samples = data.draw(st.integers(0, 40))
    ours, reference = (function(points.to(device), samples) for function in BOTH)
    assert torch.equal(ours, reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_buckets_than_a_block_has_warps(device: str, dtype: torch.dtype) -> None:
    """Warps of a GPU loop; clouds of different lengths, ties, non-finite points."""
    lengths = [4097, 13, 9000]
    points = torch.randn(sum(lengths), 3, dtype=dtype) * 8
    points[4110:] = points[4110:].round()
    points[5000:6000:7, 1] = math.inf
    ours, reference = (function(points.to(device), 40, lengths) for function in BOTH)
    assert torch.equal(ours, reference)


def test_every_sample_is_the_farthest(device: str) -> None:
    points = torch.randn(300, 3, dtype=torch.float64, device=device)
    index = farthest_point_sampling(points, 50)
    assert len(index.unique()) == 50
    distances = torch.cdist(points, points)
    for i in range(1, 50):
        to_chosen = distances[:, index[:i]].amin(1)
        torch.testing.assert_close(to_chosen[index[i]], to_chosen.max())


def test_strided_input(device: str) -> None:
    points = torch.randn(40, 5, device=device)[:, :3]
    assert torch.equal(
        farthest_point_sampling(points, 9), farthest_point_sampling(points.contiguous(), 9)
    )


@pytest.mark.parametrize("function", BOTH)
def test_wrong_arguments_are_named(function: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"points must be \[n, 3\] with n >= 1, got \[0, 3\]"):
        function(torch.zeros(0, 3), 1)
    with pytest.raises(ValueError, match=r"got \[4, 5\]"):
        function(torch.zeros(4, 5), 1)
    with pytest.raises(ValueError, match=r"a floating-point type, got torch\.int64"):
        function(torch.zeros(4, 3).long(), 1)
    with pytest.raises(ValueError, match=r"lengths must .* add up to 4 points, got \[4, 0\]"):
        function(torch.zeros(4, 3), 1, [4, 0])
    with pytest.raises(ValueError, match="at least 0, got -1"):
        function(torch.zeros(4, 3), -1)


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=30))
def test_clouds_of_a_batch_are_sampled_apart(device: str, lengths: list[int]) -> None:
    points = torch.randn(sum(lengths), 3, device=device)
    index = farthest_point_sampling(points, 5, lengths)
    expected = [farthest_point_sampling(cloud, 5) for cloud in points.split(lengths)]
    assert torch.equal(index, torch.stack(expected))


@pytest.mark.parametrize("function", BOTH)
def test_no_cloud(function: Callable[..., Tensor], device: str) -> None:
    assert function(torch.zeros(0, 3, device=device), 4, []).shape == (0, 4)


def test_half_precision_is_measured_in_float32(device: str) -> None:
    points = torch.randn(200, 3, device=device).half()
    ours, reference = (function(points, 20) for function in BOTH)
    assert torch.equal(ours, reference)
    assert torch.equal(ours, farthest_point_sampling(points.float(), 20))


def test_contract_of_the_native_operation(device: str) -> None:
    points = torch.zeros(4, 3, device=device)
    with pytest.raises(ValueError, match=r"lengths must add up to 4 points, got \[3\]"):
        native("farthest_point_sampling")(points, [3], 1)
    with pytest.raises(ValueError, match=r"every cloud must have 1 to \d+ points, got \[4, 0\]"):
        native("farthest_point_sampling")(points, [4, 0], 1)
    with pytest.raises(ValueError, match=r"points must be \[n, 3\], got \[12\]"):
        native("farthest_point_sampling")(points.flatten(), [12], 1)


def test_opcheck(device: str) -> None:
    torch.library.opcheck(
        torch.ops.opus.farthest_point_sampling, (torch.randn(9, 3, device=device), [5, 4], 4)
    )


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_equals_cpu(dtype: torch.dtype) -> None:
    points = torch.randn(20000, 3, dtype=dtype)
    for cloud in (points, points.mul(4).round()):
        assert torch.equal(
            farthest_point_sampling(cloud.cuda(), 60).cpu(), farthest_point_sampling(cloud, 60)
        )
