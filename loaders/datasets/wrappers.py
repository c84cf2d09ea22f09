"""MMEngine's dataset wrappers, nested in any way, and access to the data sets inside.

`ConcatDataset`, `RepeatDataset` and `ClassBalancedDataset` here replace MMEngine's in the
registry. They add the following:

- The position of a sample in the outermost data set is its `sample_idx` and seeds its randomness.
  Every repetition of a sample is thus augmented differently and reproducibly.
- Data sets with other classes or another grid cannot be concatenated.
- `get_cat_ids` works through all wrappers.

In an evaluation, metrics count every position once: a sample that is listed or repeated twice
counts twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine import dataset as mmengine_dataset
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.errors import LoaderConfigError

# Values that model and metrics read from the first data set only.
_SHARED_METAINFO = ("class_names", "empty_label", "pc_range", "voxel_size")


def _children(dataset: Any) -> Sequence[Any]:
    """Return the data sets inside a wrapper; none if it is not a wrapper."""
    if isinstance(dataset, BaseDataset):
        return ()
    if hasattr(dataset, "datasets"):
        return tuple(dataset.datasets)
    return (dataset.dataset,) if hasattr(dataset, "dataset") else ()


def all_datasets(dataset: Any) -> Iterator[Any]:
    """Yield a data set and, if it is a wrapper, all data sets inside, outermost first."""
    yield dataset
    for child in _children(dataset):
        yield from all_datasets(child)


def leaf_datasets(dataset: Any) -> list[Any]:
    """Return the data sets inside all wrappers, in the order of their samples."""
    return [inner for inner in all_datasets(dataset) if not _children(inner)]


def locate(dataset: Any, index: int) -> tuple[Any, int]:
    """Return the data set inside all wrappers that contains a sample, and the index in it.

    Args:
        dataset: A data set or a wrapper.
        index: Index of the sample in `dataset`; negative ones count from the end.

    Raises:
        IndexError: If the index is out of range.
        LoaderConfigError: If a wrapper has an unknown type.
    """
    while children := _children(dataset):
        size = len(dataset)
        if not -size <= index < size:
            raise IndexError(f"index {index} is out of range for {size} samples")
        if not hasattr(dataset, "_get_ori_dataset_idx"):
            raise LoaderConfigError(
                f"{type(dataset).__name__} does not specify the data set of a sample: use "
                "ConcatDataset, RepeatDataset or ClassBalancedDataset"
            )
        position = dataset._get_ori_dataset_idx(index % size)
        child, index = position if isinstance(position, tuple) else (0, position)
        dataset = children[child]
    return dataset, int(index)


def set_epoch(dataset: Any, epoch: int) -> None:
    """Pass the epoch to all data sets inside wrappers that seed their randomness from it."""
    for inner in all_datasets(dataset):
        if hasattr(inner, "set_epoch"):
            inner.set_epoch(epoch)


def check_alike(datasets: Sequence[Any], ignored: Sequence[str] = ()) -> None:
    """Raise an error unless data sets can be concatenated.

    Args:
        datasets: Data sets or wrappers, with `metainfo`.
        ignored: Keys of the metainfo that may differ. Classes and grid may not.

    Raises:
        LoaderConfigError: If a value of the metainfo differs.
    """
    first = datasets[0].metainfo
    for number, dataset in enumerate(datasets[1:], start=2):
        for key in dict.fromkeys([*first, *dataset.metainfo]):
            if key in ignored and key not in _SHARED_METAINFO:
                continue
            values = first.get(key), dataset.metainfo.get(key)
            if not _equal(*values):
                raise LoaderConfigError(
                    f"data sets with different {key} cannot be concatenated: the first has "
                    f"{_shortened(values[0])}, number {number} has {_shortened(values[1])}; give "
                    f"all of them one {key}"
                )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple, np.ndarray)) and isinstance(b, (list, tuple, np.ndarray)):
        return np.array_equal(np.asarray(a), np.asarray(b))
    return bool(a == b)


def _shortened(value: Any, length: int = 120) -> str:
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


class _Positioned:
    """Access to items of the data set inside all wrappers, with their position in this one."""

    if TYPE_CHECKING:

        def __len__(self) -> int: ...

    def __getitem__(self, idx: int) -> Any:
        dataset, index = locate(self, idx)
        if isinstance(dataset, OccupancyDataset):
            return dataset.item(index, position=idx % len(self))
        return dataset[index]

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the classes that occur in a sample."""
        dataset, index = locate(self, idx)
        categories: list[int] = dataset.get_cat_ids(index)
        return categories


@DATASETS.register_module(force=True)
class ConcatDataset(_Positioned, mmengine_dataset.ConcatDataset):
    """Concatenation of data sets.

    Args:
        datasets: Data sets or wrappers, or their configs, with the same classes and grid.
        lazy_init: Do not read the info files yet.
        ignore_keys: Keys of the metainfo that may differ. Classes and grid may not.

    Raises:
        LoaderConfigError: If there is no data set, or classes or grids differ.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        lazy_init: bool = False,
        ignore_keys: str | Sequence[str] | None = None,
    ) -> None:
        # MMEngine's constructor accepts no wrappers and has another message for unequal metainfo.
        if not datasets:
            raise LoaderConfigError("ConcatDataset has no datasets: list at least one")
        self.datasets = [
            DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
            for dataset in datasets
        ]
        self.ignore_keys = [ignore_keys] if isinstance(ignore_keys, str) else [*(ignore_keys or ())]
        check_alike(self.datasets, self.ignore_keys)
        self._metainfo = self.datasets[0].metainfo
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()


@DATASETS.register_module(force=True)
class RepeatDataset(_Positioned, mmengine_dataset.RepeatDataset):
    """Repetition of a data set, for longer epochs.

    Args:
        dataset: Data set or its config (a wrapper: its config).
        times: Number of repetitions.
        lazy_init: Do not read the info file yet.
    """


@DATASETS.register_module(force=True)
class ClassBalancedDataset(_Positioned, mmengine_dataset.ClassBalancedDataset):
    """Data set in which samples with rare classes are repeated (LVIS, arXiv 1908.03195).

    The frequency of a class is the share of samples whose labels contain it. All labels are read
    when the data set is built.

    Args:
        dataset: Data set or its config (a wrapper: its config).
        oversample_thr: Frequency below which the samples of a class are repeated.
        lazy_init: Do not read the info file and the labels yet.
    """


def map_leaf_configs(
    cfg: Mapping[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Return the config of a data set, changed in all data sets inside wrappers.

    Args:
        cfg: Config of a data set or a wrapper; it is not modified.
        change: Returns the new config of a data set that is not a wrapper.
    """
    cfg = dict(cfg)
    if "datasets" in cfg:
        return {**cfg, "datasets": [map_leaf_configs(child, change) for child in cfg["datasets"]]}
    if "dataset" in cfg:
        return {**cfg, "dataset": map_leaf_configs(cfg["dataset"], change)}
    return change(cfg)


def with_optional_labels(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a data set that also loads samples without a label file."""

    def change(leaf: dict[str, Any]) -> dict[str, Any]:
        kind = DATASETS.get(str(leaf.get("type")))
        is_ours = isinstance(kind, type) and issubclass(kind, OccupancyDataset)
        return {**leaf, "require_labels": False} if is_ours else leaf

    return map_leaf_configs(cfg, change)


def leaf_configs(cfg: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the configs of the data sets inside all wrappers, in the order of their samples."""
    leaves: list[dict[str, Any]] = []

    def note(leaf: dict[str, Any]) -> dict[str, Any]:
        leaves.append(leaf)
        return leaf

    map_leaf_configs(cfg, note)
    return leaves
