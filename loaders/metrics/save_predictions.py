"""Metric that writes predictions to disk and computes no score."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS

from loaders.errors import BadDataError
from loaders.metrics.base import DataSample, require, to_numpy
from loaders.predictions import save_prediction, save_submission


@METRICS.register_module()
class SavePredictions(BaseMetric):
    """Write the prediction of every sample to `<out_dir>/<sample token>.npz`.

    Put it next to the metrics of a `test_evaluator`. Samples that replace broken ones are not
    written. A sample that is listed or repeated twice is written to one file. When the disk is
    full, the remaining files are not written and an error is logged; scores of other metrics are
    not lost.

    Args:
        out_dir: Folder, created if needed.
        submission: Whether to write dense arrays in the format of the Occ3D benchmark, instead of
            the sparse form (see `loaders.predictions`).

    Raises:
        BadDataError: If two data sets have different samples with the same token, because one file
            would replace the other.
    """

    def __init__(self, out_dir: str, submission: bool = False) -> None:
        super().__init__(collect_device="gpu", prefix=None)
        self._folder = Path(out_dir)
        self._submission = submission
        self._can_write = True

    def process(self, data_batch: Any, data_samples: Sequence[DataSample]) -> None:
        """Write the files of one batch."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for sample in data_samples:
            saved = None
            if self._can_write and sample.get("replaces") is None:
                try:
                    saved = (self._save(sample), _source(sample))
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        raise
                    self._can_write = False
                    print_log(
                        f"{self._folder} cannot hold more predictions ({error.strerror}): free "
                        "space and run again; the scores are still computed",
                        logger="current",
                        level=logging.ERROR,
                    )
            self.results.append(saved)

    def compute_metrics(self, results: list[tuple[str, str] | None]) -> dict[str, float]:
        """Return the number of files written."""
        sources: dict[str, str] = {}
        for token, source in filter(None, results):
            if sources.setdefault(token, source) != source:
                raise BadDataError(
                    f"two samples have the token {token}, one with the image {sources[token]}, the "
                    f"other with {source}, but {self._folder} can hold the prediction of only one: "
                    "save the predictions of each data set to a separate folder"
                )
        name = "submission_files" if self._submission else "saved_predictions"
        return {name: len(sources)}

    def _save(self, sample: DataSample) -> str:
        remedy = "put PackOccSample into the test pipeline"
        token = require(sample, "sample_token", remedy)
        predict = "evaluate the output of the model's predict mode"
        coords = to_numpy(require(sample, "pred_coords", predict))
        labels = to_numpy(require(sample, "pred_labels", predict))
        if not self._submission:
            scores = sample.get("pred_scores")
            save_prediction(
                self._folder, token, coords, labels, None if scores is None else to_numpy(scores)
            )
            return str(token)
        pc_range = np.array(require(sample, "pc_range", remedy))
        voxel_size = np.array(require(sample, "voxel_size", remedy))
        shape = np.round((pc_range[3:] - pc_range[:3]) / voxel_size).astype(int).tolist()
        empty_label = len(require(sample, "class_names", remedy))
        save_submission(self._folder, token, coords, labels, tuple(shape), empty_label)
        return str(token)


def _source(sample: DataSample) -> str:
    """Return the file of a sample's first image, empty if unknown."""
    paths = sample.get("img_paths")
    return str(paths[0]) if paths else ""
