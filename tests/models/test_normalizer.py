"""Divisors of losses: batches computed by hand, spread over processes and parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from models.losses import LossNormalizer, LossTerm, normalize_alone


def term(total: float, count: float) -> LossTerm:
    return LossTerm(torch.tensor(total, requires_grad=True), torch.tensor(count))


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Simulate other processes, which add their counts to every sum."""

    def pretend(*others: list[float]) -> None:
        def all_reduce(counts: Tensor) -> None:
            for other in others:
                counts += torch.tensor(other, dtype=counts.dtype)

        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 1 + len(others))
        monkeypatch.setattr(dist, "all_reduce", all_reduce)

    return pretend


def test_alone_both_scopes_divide_by_the_own_counts() -> None:
    terms = {"a": [term(6.0, 3), term(1.0, 4)], "b": [term(5.0, 2)]}
    for losses in (LossNormalizer("batch")(terms), normalize_alone(terms)):
        assert {name: value.item() for name, value in losses.items()} == {"a": 2.25, "b": 2.5}


def test_mean_over_processes_is_the_joint_batch(beside: Callable[..., None]) -> None:
    # sums 6 and 2 over counts 3 and 1 on two processes: (6 + 2) / (3 + 1) = 2
    values = []
    for own, other in (((6.0, 3.0), 1.0), ((2.0, 1.0), 3.0)):
        beside([other])
        values.append(LossNormalizer("batch")({"a": [term(*own)]})["a"].item())
    assert values == [3.0, 1.0] and sum(values) / 2 == (6 + 2) / (3 + 1)


def test_rank_scope_does_not_ask_the_others(beside: Callable[..., None]) -> None:
    beside([1000.0])
    assert LossNormalizer("rank")({"a": [term(6.0, 3)]})["a"].item() == 2.0


def test_only_the_joint_count_is_taken_for_one(beside: Callable[..., None]) -> None:
    assert LossNormalizer("batch")({"a": [term(3.0, 0)]})["a"].item() == 3.0
    # One occupied voxel on one of four processes: the joint mean is 8 / 1, not 8 / 4.
    beside([0.0], [0.0], [0.0])
    assert LossNormalizer("batch")({"a": [term(8.0, 1)]})["a"].item() / 4 == 8.0
    # Nothing anywhere: the sum over all processes is divided by 1.
    assert LossNormalizer("batch")({"a": [term(8.0, 0)]})["a"].item() / 4 == 8.0


def test_parts_of_an_accumulated_batch(beside: Callable[..., None]) -> None:
    # This process has the parts 6/3 and 2/1, the other one counts 4 in its two parts.
    beside([4.0])
    normalizer = LossNormalizer("batch")
    parts = [{"a": [term(6.0, 3)]}, {"a": [term(2.0, 1)]}]
    with normalizer.counting():
        for part in parts:
            normalizer(part)
    with normalizer.dividing_by_counted():
        values = [normalizer(part)["a"].item() for part in parts]
    assert sum(values) / 2 / 2 == (6 + 2) / (3 + 1 + 4)
    beside([0.0])
    assert normalizer(parts[0])["a"].item() == 6 / (3 / 2)  # as before, without parts


def test_gradient_is_that_of_the_divided_sum() -> None:
    part = term(6.0, 3)
    LossNormalizer("batch")({"a": [part]})["a"].backward()
    assert part.total.grad is not None and part.total.grad.item() == pytest.approx(1 / 3)


def test_unknown_scope_is_named() -> None:
    with pytest.raises(ValueError, match=r"must be one of .*'batch', 'rank'.*, got 'sample'"):
        LossNormalizer("sample")
