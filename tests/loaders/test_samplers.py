"""Steps of an epoch on any number of processes."""

from __future__ import annotations

import itertools

import mmengine.dataset.sampler
import pytest

from loaders.datasets.samplers import EpochSampler


def steps(
    monkeypatch: pytest.MonkeyPatch, size: int, batch: int, processes: int, epoch: int
) -> list[list[int]]:
    """Return the sorted samples of every step of all processes, `batch` on each."""
    shares = []
    for rank in range(processes):
        place = (rank, processes)
        monkeypatch.setattr(mmengine.dataset.sampler, "get_dist_info", lambda place=place: place)
        sampler = EpochSampler(list(range(size)), batch * processes, shuffle=True, seed=7)
        sampler.set_epoch(epoch)
        share = list(sampler)
        assert len(share) == len(sampler)
        shares.append([share[i : i + batch] for i in range(0, len(share), batch)])
    return [sorted(itertools.chain(*step)) for step in zip(*shares, strict=True)]


@pytest.mark.parametrize("size", [1, 3, 8, 13])
@pytest.mark.parametrize("processes", [2, 4])
def test_steps_do_not_depend_on_the_processes(
    monkeypatch: pytest.MonkeyPatch, size: int, processes: int
) -> None:
    for batch, epoch in itertools.product((1, 2, 3), (0, 1)):
        total = batch * processes
        many = steps(monkeypatch, size, batch, processes, epoch)
        assert many == steps(monkeypatch, size, total, 1, epoch)
        assert all(len(step) == total for step in many) and len(many) == -(-size // total)
        seen = list(itertools.chain(*many))
        assert set(seen) == set(range(size))


def test_without_a_multiple_it_is_the_default_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    for processes, expected in ((1, 5), (2, 3), (4, 2)):
        place = (0, processes)
        monkeypatch.setattr(mmengine.dataset.sampler, "get_dist_info", lambda place=place: place)
        assert len(EpochSampler(list(range(5)), shuffle=False)) == expected


@pytest.mark.parametrize("size", [1, 2, 5, 8, 13])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_consecutive_shares_are_gathered_whole(
    monkeypatch: pytest.MonkeyPatch, size: int, processes: int
) -> None:
    shares = []
    for rank in range(processes):
        place = (rank, processes)
        monkeypatch.setattr(mmengine.dataset.sampler, "get_dist_info", lambda place=place: place)
        sampler = EpochSampler(list(range(size)), shuffle=False, consecutive=True)
        share = list(sampler)
        assert len(share) == len(sampler) == -(-size // processes)
        own = share[: size // processes]
        assert own == list(range(own[0], own[0] + len(own))) if own else True
        shares.append(share)
    # as mmengine.dist.collect_results does: one result of each process in turn, the rest dropped
    gathered = [index for turn in zip(*shares, strict=True) for index in turn][:size]
    assert sorted(gathered) == list(range(size))
