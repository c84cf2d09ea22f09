from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.ops import unique_voxels, unique_voxels_reference

BOTH = [unique_voxels, unique_voxels_reference]


@pytest.mark.parametrize("function", BOTH)
def test_known_answer(function: Callable[..., Any], device: str) -> None:
    unique, inverse = function(torch.tensor([70, 3, 70, 0, 3], device=device), 71)
    assert unique.tolist() == [0, 3, 70] and inverse.tolist() == [2, 1, 2, 0, 1]


@given(keys=st.lists(st.integers(0, 300)), more=st.integers(1, 5000))
def test_definition(device: str, keys: list[int], more: int) -> None:
    on_device = torch.tensor(keys, dtype=torch.int64, device=device)
    unique, inverse = unique_voxels(on_device, 301 + more)
    assert unique.tolist() == sorted(set(keys))
    assert unique[inverse].tolist() == keys


def test_words_and_gaps(device: str) -> None:
    """First and last bits of words, full words, and long runs without a key."""
    keys = torch.cat([torch.arange(64, 96), torch.tensor([0, 31, 32, 5000, 99999, 31])])
    unique, inverse = unique_voxels(keys.to(device), 100000)
    assert unique.tolist() == sorted(set(keys.tolist()))
    assert torch.equal(unique.cpu()[inverse.cpu()], keys)


def test_first_key_out_of_range_is_named(device: str) -> None:
    keys = torch.arange(1000) % 9
    keys[[700, 701, 20]] = torch.tensor([9, -1, 10**15])
    with pytest.raises(ValueError, match=r"keys\[20\] is 1000000000000000, expected 0 <= key <"):
        unique_voxels(keys.to(device), 9)


def test_strides_and_threads(at_threads: Callable[..., Any]) -> None:
    keys = torch.randint(0, 10**6, (60000,))[::2]
    one, two = (at_threads(n, unique_voxels, keys, 10**6) for n in (1, 2))
    reference = unique_voxels_reference(keys, 10**6)
    for a, b, c in zip(one, two, reference, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_bad_arguments() -> None:
    keys = torch.tensor([0, 5])
    for function in BOTH:
        with pytest.raises(ValueError, match=r"keys must be int64 \[n\], got torch.int32 \[2\]"):
            function(keys.int(), 9)
        with pytest.raises(ValueError, match="num_keys must not be negative"):
            function(keys, -1)
    for bad in (torch.tensor([0, 9]), torch.tensor([3, -1])):
        with pytest.raises(
            ValueError, match=r"keys\[1\] is (9|-1), expected 0 <= key < num_keys=9"
        ):
            unique_voxels(bad, 9)


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.opus.unique_voxels.default, (torch.tensor([4, 1, 4]), 9))
