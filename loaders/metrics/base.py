"""Base of the occupancy metrics: reads data samples and counts each sample once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mmengine.dist import get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log

from loaders.errors import LoaderConfigError
from loaders.metrics.counts import CountAccumulator, CountState, merge
from loaders.metrics.occupancy import dense_labels

DataSample = Mapping[str, Any]


class CountingMetric(BaseMetric):
    """Base class of MMEngine metrics that are functions of summed per-sample counts.

    Results are exact for any number of processes and any padding of the last round. Memory use does
    not depend on the number of samples (except for their keys, see `sample_key`).

    Args:
        class_names: Semantic classes in label order; None uses those of the data set.
        empty_label: Label of free voxels; None means the label after the last semantic class.
        collect_device: `"gpu"` gathers results by a collective operation of the process group,
            also on CPU processes; `"cpu"` through files, which needs a folder shared by all
            machines.
        prefix: Prefix of the result's keys.
    """

    def __init__(
        self,
        class_names: Sequence[str] | None = None,
        empty_label: int | None = None,
        collect_device: str = "gpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self._class_names = None if class_names is None else tuple(class_names)
        self._empty_label = empty_label
        self._counts = CountAccumulator()
        self._has_unlabelled = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Semantic classes (free excluded)."""
        if self._class_names is not None:
            return self._class_names
        if not self.dataset_meta or "class_names" not in self.dataset_meta:
            raise LoaderConfigError(
                f"{type(self).__name__} has no classes: set class_names, or use a data set with "
                "class_names in its metainfo"
            )
        return tuple(self.dataset_meta["class_names"])

    @property
    def empty_label(self) -> int:
        """Label of free voxels."""
        return len(self.class_names) if self._empty_label is None else self._empty_label

    @property
    def num_classes(self) -> int:
        """Number of classes, free included."""
        return len(self.class_names) + 1

    def process(self, data_batch: Any, data_samples: Sequence[DataSample]) -> None:
        """Add one batch.

        Args:
            data_batch: Ignored.
            data_samples: One mapping per sample with `sample_token` and `sample_idx`,
                `voxel_semantics` and the prediction (`pred_coords` [n, 3] and `pred_labels`
                [n]), and the further entries that the metric needs.
        """
        for sample in data_samples:
            if sample.get("replaces") is not None:
                continue  # replaces a sample that cannot be loaded; it counts at its own position
            if sample.get("is_unlabelled"):
                self._has_unlabelled = True
                continue
            self._counts.add(sample_key(sample), self.count(sample))

    def count(self, sample: DataSample) -> npt.NDArray[np.int64]:
        """Return the counts of one sample as an array of fixed shape."""
        raise NotImplementedError

    def score(self, counts: npt.NDArray[np.int64]) -> dict[str, float]:
        """Convert summed counts to named scores and log a table."""
        raise NotImplementedError

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather the counts of all processes and score them.

        Args:
            size: Number of samples of the data set; a different number of samples is logged.
        """
        self._expected_samples = size
        self.results = [self._counts.state()]
        self._counts.reset()
        # BaseMetric keeps `size` of the gathered results; each process contributes one.
        return super().evaluate(get_world_size())

    def counted(self) -> CountState:
        """Return the counts so far, for `evaluate_counted` in another process."""
        return self._counts.state()

    def evaluate_counted(self, states: Sequence[CountState], size: int) -> dict[str, float]:
        """Score the counts of several metrics with the same settings, without communication.

        Args:
            states: Counts of worker processes.
            size: Number of samples of the data set; a different number of samples is logged.
        """
        self._expected_samples = size
        scores = self.compute_metrics(list(states))
        return {f"{self.prefix}/{name}" if self.prefix else name: v for name, v in scores.items()}

    def compute_metrics(self, results: list[CountState]) -> dict[str, float]:
        """Score the gathered states (called on the main process)."""
        counts, num_samples = merge(results)
        if counts is None and self._has_unlabelled:
            self.log(f"{type(self).__name__}: no sample has labels, nothing is scored")
            return {}
        if counts is None:
            raise LoaderConfigError(f"{type(self).__name__} got no samples: is the data set empty?")
        if num_samples != self._expected_samples:
            self.log(
                f"{type(self).__name__}: {num_samples} of {self._expected_samples} samples scored"
            )
        return self.score(counts)

    @staticmethod
    def log(message: str) -> None:
        """Write to the runner's log."""
        print_log(message, logger=MMLogger.get_current_instance())


def to_numpy(value: Any) -> npt.NDArray[Any]:
    """Return a tensor or array as a numpy array on the CPU."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def sample_key(sample: DataSample) -> tuple[str | None, int | None]:
    """Return the key of a sample in an evaluation: its token and its position.

    Samples of several data sets differ in their tokens. A sample that is listed or repeated twice
    has two positions and counts twice. Copies that pad the last round of a distributed evaluation
    have the position of the original and are not counted.

    Raises:
        LoaderConfigError: If it has neither a token nor a position.
    """
    token, index = sample.get("sample_token"), sample.get("sample_idx")
    if token is None and index is None:
        raise LoaderConfigError(
            "a sample has neither 'sample_token' nor 'sample_idx' as an identifier: put "
            "PackOccSample into the test pipeline"
        )
    return None if token is None else str(token), None if index is None else int(index)


def require(sample: DataSample, key: str, remedy: str) -> Any:
    """Return `sample[key]`.

    Raises:
        LoaderConfigError: If the key is missing or None; the message ends with the remedy.
    """
    if sample.get(key) is None:
        raise LoaderConfigError(
            f"sample {sample.get('sample_token', '?')} has no '{key}' for the metric: {remedy}"
        )
    return sample[key]


def gt_and_pred_grids(
    sample: DataSample, empty_label: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return ground truth and prediction of a sample as uint8 grids [X, Y, Z]."""
    remedy = "put LoadOcc3DLabels or LoadOccupancyLabels into the test pipeline"
    gt = to_numpy(require(sample, "voxel_semantics", remedy))
    remedy = "evaluate the output of the model's predict mode"
    coords = to_numpy(require(sample, "pred_coords", remedy))
    labels = to_numpy(require(sample, "pred_labels", remedy))
    pred = dense_labels(coords, labels, (gt.shape[0], gt.shape[1], gt.shape[2]), empty_label)
    return gt, pred
