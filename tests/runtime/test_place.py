"""The rest of an epoch, against the samples of undisturbed processes."""

from __future__ import annotations

from typing import Any

import pytest
from mmengine.dataset import DefaultSampler, InfiniteSampler

from scripts.runtime.place import num_iterations, remaining_indices


class Batches:
    drop_last = False

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size


def sampler_of(rank: int, processes: int, number: int, kind: Any = DefaultSampler) -> Any:
    sampler = kind(range(number), shuffle=True, seed=3)
    sampler.rank, sampler.world_size = rank, processes
    if kind is DefaultSampler:
        sampler.num_samples = -(-number // processes)
        sampler.total_size = sampler.num_samples * processes
    else:
        sampler.indices = sampler._indices_of_rank()
    return sampler


@pytest.mark.parametrize("number", [11, 12])
@pytest.mark.parametrize(("processes", "batch"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)])
def test_the_same_processes_go_on_as_if_undisturbed(
    number: int, processes: int, batch: int
) -> None:
    step = processes * batch
    for done in range(0, number, step):
        for rank in range(processes):
            sampler = sampler_of(rank, processes, number)
            whole = list(sampler)
            rest = remaining_indices(sampler, done, step)
            assert rest == whole[done // processes :]
            left = num_iterations(len(rest), Batches(batch))
            assert left == num_iterations(len(whole), Batches(batch)) - done // step


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("done", [0, 1, 5, 8, 10, 11])
def test_other_processes_share_what_is_left(processes: int, done: int) -> None:
    order = list(sampler_of(0, 1, 11))
    shares = [
        remaining_indices(sampler_of(rank, processes, 11), done, 2 * processes)
        for rank in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    joint = [index for step in zip(*shares, strict=True) for index in step]
    assert joint[: 11 - done] == order[done:]
    assert len(joint) - (11 - done) < processes  # repeated to give each process as many


def test_an_endless_order_goes_on() -> None:
    stream = iter(sampler_of(0, 1, 5, InfiniteSampler))
    order = [next(stream) for _ in range(20)]
    for rank in range(2):
        rest = iter(remaining_indices(sampler_of(rank, 2, 5, InfiniteSampler), 7, 2))
        assert [next(rest) for _ in range(5)] == order[7 + rank : 17 : 2]


def test_samplers_that_cannot_be_divided() -> None:
    assert remaining_indices([4, 2, 0], 1, 1) == [2, 0]
