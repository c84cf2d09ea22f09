"""Scenes frame by frame, on any number of processes, from any position of an epoch."""

from __future__ import annotations

import itertools
from typing import Any

import mmengine.dataset.sampler
import pytest

from loaders.datasets.samplers import SceneSampler
from loaders.errors import LoaderConfigError
from scripts.runtime.place import remaining_indices

LENGTHS = (5, 3, 7, 1, 4)


class Scenes:
    """Data set of scenes with unordered frames."""

    def __init__(self, lengths: tuple[int, ...] = LENGTHS) -> None:
        frames = [(scene, frame) for scene, n in enumerate(lengths) for frame in range(n)]
        self.frames = sorted(frames, key=lambda pair: (pair[0], -pair[1] % 3))
        self.epoch: int | None = None
        self.in_sequence: bool | None = None

    def __len__(self) -> int:
        return len(self.frames)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return dict(scene_token=f"scene{self.frames[index][0]}")

    def frame_index(self, index: int) -> int:
        return self.frames[index][1]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def set_in_sequence(self, in_sequence: bool) -> None:
        self.in_sequence = in_sequence


def sampler_of(
    monkeypatch: pytest.MonkeyPatch, rank: int, processes: int, dataset: Any, **options: Any
) -> SceneSampler:
    monkeypatch.setattr(mmengine.dataset.sampler, "get_dist_info", lambda: (rank, processes))
    return SceneSampler(dataset, seed=7, **options)


def batches(sampler: SceneSampler, size: int) -> list[list[int]]:
    share = list(sampler)
    assert len(share) == len(sampler)
    return [share[i : i + size] for i in range(0, len(share), size)]


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("epoch", [0, 3])
def test_each_place_in_the_batch_follows_its_scenes(
    monkeypatch: pytest.MonkeyPatch, processes: int, epoch: int
) -> None:
    dataset, total = Scenes(), 4
    steps: list[list[list[int]]] = []
    for rank in range(processes):
        sampler = sampler_of(monkeypatch, rank, processes, dataset, multiple_of=total)
        sampler.set_epoch(epoch)
        steps.append(batches(sampler, total // processes))
    seen: list[int] = []
    for share in steps:
        for place in zip(*share, strict=True):  # of one place in the batch, over the epoch
            seen += place
            for a, b in itertools.pairwise(dataset.frames[i] for i in place):
                follows = b[0] == a[0] and b[1] == a[1] + 1
                ends = a[1] == LENGTHS[a[0]] - 1 and b[1] == 0
                assert follows or ends
    assert set(seen) == set(range(len(dataset)))
    assert len(seen) == 20 and len(dataset) == 20
    assert dataset.epoch == epoch and dataset.in_sequence is True


def test_batches_do_not_depend_on_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Scenes((5, 3, 7, 4))  # 19 frames: the last step is filled up
    whole = sampler_of(monkeypatch, 0, 1, dataset, multiple_of=4)
    expected = [sorted(step) for step in batches(whole, 4)]
    assert len(expected) == 5
    shares = [
        batches(sampler_of(monkeypatch, rank, 2, dataset, multiple_of=4), 2) for rank in range(2)
    ]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == expected
    other = sampler_of(monkeypatch, 0, 1, dataset, multiple_of=4)
    orders = set()
    for epoch in range(5):
        other.set_epoch(epoch)
        orders.add(tuple(other))
    assert len(orders) > 1


def test_single_frames_first(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Scenes()
    sampler = sampler_of(monkeypatch, 0, 1, dataset, multiple_of=4, single_epochs=2)
    for epoch, in_sequence in ((0, False), (1, False), (2, True)):
        sampler.set_epoch(epoch)
        assert dataset.in_sequence is in_sequence
        order = list(sampler)
        assert sorted(order) == list(range(20))
        row = [dataset.frames[i] for i in order[::4]]
        ordered = all(b == (a[0], a[1] + 1) or b[1] == 0 for a, b in itertools.pairwise(row))
        assert ordered is in_sequence


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("single_epochs", [0, 5])
def test_an_epoch_goes_on_where_it_was_left(
    monkeypatch: pytest.MonkeyPatch, processes: int, single_epochs: int
) -> None:
    dataset = Scenes((5, 3, 7, 4))
    for rank in range(processes):
        sampler = sampler_of(
            monkeypatch, rank, processes, dataset, multiple_of=4, single_epochs=single_epochs
        )
        sampler.set_epoch(2)
        whole = list(sampler)
        for done in (4, 12, 16):
            assert remaining_indices(sampler, done, 4) == whole[done // processes :]
        assert remaining_indices(sampler, 4, 2) is None  # another batch size, another order


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_an_evaluation_sees_whole_scenes(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    dataset, seen = Scenes(), []
    sizes = set()
    for rank in range(processes):
        sampler = sampler_of(monkeypatch, rank, processes, dataset, shuffle=False)
        order = [dataset.frames[i] for i in sampler]
        sizes.add(len(order))
        seen += order
        assert order[0][1] == 0
        for a, b in itertools.pairwise(order):
            assert b == (a[0], a[1] + 1) or b[1] == 0
    assert set(seen) == set(dataset.frames) and len(sizes) == 1
    if processes == 1:
        assert seen == sorted(dataset.frames)
    if processes == 2:
        assert len(order) == 10


def test_data_that_cannot_be_followed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoaderConfigError, match="list does not list its scenes"):
        sampler_of(monkeypatch, 0, 1, [1, 2, 3])
    with pytest.raises(LoaderConfigError, match="a training step has 32 samples"):
        sampler_of(monkeypatch, 0, 1, Scenes(), multiple_of=32)
