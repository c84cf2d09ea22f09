"""Samplers that pass the epoch to the data set: single frames, and scenes frame by frame."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from typing import Any

import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS

from loaders.datasets.wrappers import all_datasets, locate, set_epoch
from loaders.errors import LoaderConfigError


@DATA_SAMPLERS.register_module()
class EpochSampler(DefaultSampler):
    """``DefaultSampler`` that passes the epoch to the data set, through all wrappers.

    The data set seeds each sample's randomness from (seed, epoch, index). Augmentations therefore
    differ between epochs and do not depend on the number of workers or processes, or on whether a
    run was interrupted and resumed. With wrappers, the index is the position in the outermost one
    (see :mod:`loaders.datasets.wrappers`). MMEngine's default hooks call ``set_epoch``.

    Args:
        dataset: The data set.
        multiple_of: Samples of a training step on all processes. The last step of an epoch is
            filled with the epoch's first samples; it is the same for any number of processes.
        consecutive: Without shuffling, whether every process gets consecutive samples instead of
            every n-th one. Consecutive samples of a scene share frames, which streaming computes
            once.
        **kwargs: Arguments of ``DefaultSampler``.
    """

    def __init__(
        self, dataset: Sized, multiple_of: int = 1, consecutive: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(dataset, **kwargs)
        self.consecutive = consecutive
        self.multiple_of = multiple_of
        if self.round_up:
            multiple = math.lcm(multiple_of, self.world_size)
            self.total_size = math.ceil(len(dataset) / multiple) * multiple
            self.num_samples = self.total_size // self.world_size

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of this process."""
        if not self.consecutive or self.shuffle or not self.round_up:
            return super().__iter__()
        full, rest = divmod(len(self.dataset), self.world_size)
        start = self.rank * full + min(self.rank, rest)
        share = list(range(start, start + full + (self.rank < rest)))
        # MMEngine interleaves the results of the processes and drops those beyond the data set's
        # length. The filling samples must therefore be the last ones of the last processes.
        share += [start % len(self.dataset)] * (self.num_samples - len(share))
        return iter(share)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the order and of the data set's randomness."""
        super().set_epoch(epoch)
        set_epoch(self.dataset, epoch)


@DATA_SAMPLERS.register_module()
class SceneSampler(EpochSampler):
    """Sampler that serves scenes frame by frame, for models with a memory of the previous frame.

    In training, the scenes of an epoch are concatenated in random order and cut into as many pieces
    of equal length as a step has samples. Each position in the batch (of any process) follows its
    own piece, so its next sample is the next frame. Every frame occurs once, and the last step is
    filled with the first frames. A piece may begin or end within a scene; the model's memory is
    then empty at its start.

    In evaluation (``shuffle=False``) every process follows whole scenes from their first frame, one
    sample at a time. Processes with fewer frames repeat some, which are counted once.

    Args:
        dataset: The data set, or wrappers of it.
        multiple_of: Samples of a training step on all processes.
        single_epochs: Number of epochs at the start with single frames in random order.
        **kwargs: Arguments of ``DefaultSampler``.

    Raises:
        LoaderConfigError: If the data set has no scenes, or is smaller than a step.
    """

    # The order depends on the total batch size; a run with another one cannot resume mid-epoch.
    depends_on_batch = True

    def __init__(
        self, dataset: Sized, multiple_of: int = 1, single_epochs: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(dataset, multiple_of=multiple_of, **kwargs)
        self.single_epochs = single_epochs
        self._scenes = _scenes_of(dataset)
        self.slots = math.lcm(multiple_of, self.world_size) if self.shuffle else self.world_size
        if self.shuffle and len(dataset) < self.slots:
            raise LoaderConfigError(
                f"a training step has {self.slots} samples, but the data set only {len(dataset)}: "
                "lower batch_size"
            )
        self.steps = math.ceil(len(dataset) / self.slots)
        if not self.shuffle:
            self.steps = max(map(len, self._whole_scenes()))
        self.total_size = self.slots * self.steps
        self.num_samples = self.total_size // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the order and of the data set's randomness."""
        super().set_epoch(epoch)
        for inner in all_datasets(self.dataset):
            if hasattr(inner, "set_in_sequence"):
                inner.set_in_sequence(epoch >= self.single_epochs)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order()[self.rank :: self.world_size])

    def remaining(self, num_done: int, step: int) -> list[int] | None:
        """Return the remaining indices of this process in the epoch.

        Args:
            num_done: Finished samples, over all processes.
            step: Samples of an iteration, over all processes.

        Returns:
            The indices, or None if they cannot be determined.
        """
        if self.shuffle and step != self.slots:
            return None
        return self._order()[num_done:][self.rank :: self.world_size]

    def _order(self) -> list[int]:
        """Return the order over all processes: by step, then by position in the batch."""
        if not self.shuffle:
            pieces = self._whole_scenes()
            pieces = [piece or pieces[0] for piece in pieces]
            cycled = [[piece[t % len(piece)] for t in range(self.steps)] for piece in pieces]
            return [piece[t] for t in range(self.steps) for piece in cycled]
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.epoch < self.single_epochs:
            row = torch.randperm(len(self.dataset), generator=generator).tolist()
            return (row + row[: self.total_size - len(row)])[: self.total_size]
        scenes = torch.randperm(len(self._scenes), generator=generator).tolist()
        row = [index for scene in scenes for index in self._scenes[scene]]
        row += row[: self.total_size - len(row)]
        starts = range(0, self.total_size, self.steps)
        return [row[start + t] for t in range(self.steps) for start in starts]

    def _whole_scenes(self) -> list[list[int]]:
        """Return the frames of each process in an evaluation.

        Scenes are assigned longest first, each to the process with the fewest frames.
        """
        share: list[list[int]] = [[] for _ in range(self.world_size)]
        by_length = sorted(range(len(self._scenes)), key=lambda i: -len(self._scenes[i]))
        loads = [0] * self.world_size
        for scene in by_length:
            least = loads.index(min(loads))
            share[least].append(scene)
            loads[least] += len(self._scenes[scene])
        return [[i for scene in sorted(own) for i in self._scenes[scene]] for own in share]


def _scenes_of(dataset: Sized) -> list[list[int]]:
    """Return the samples of each scene in time order, scenes in the order of the data set.

    A scene that a wrapper repeats occurs several times.

    Raises:
        LoaderConfigError: If a data set inside has no scenes.
    """
    scenes: dict[tuple[int, str, int], list[tuple[int, int]]] = {}
    seen: dict[tuple[int, int], int] = {}
    for position in range(len(dataset)):
        leaf, index = locate(dataset, position)
        if not hasattr(leaf, "frame_index"):
            raise LoaderConfigError(
                f"{type(leaf).__name__} does not list its scenes: use EpochSampler instead of "
                "SceneSampler"
            )
        copy = seen[id(leaf), index] = seen.get((id(leaf), index), -1) + 1
        key = (id(leaf), leaf.get_data_info(index)["scene_token"], copy)
        scenes.setdefault(key, []).append((leaf.frame_index(index), position))
    return [[position for _, position in sorted(frames)] for frames in scenes.values()]
