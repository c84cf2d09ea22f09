"""A metric that scores nothing and writes predictions to disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from loaders.metrics.base import DataSample, require, to_numpy
from loaders.predictions import save_prediction, save_submission


@METRICS.register_module()
class SavePredictions(BaseMetric):
    """Writes the prediction of every sample to ``<out_dir>/<sample token>.npz``.

    To stand beside the metrics of a ``test_evaluator``. Samples that stand in for broken ones are
    not written.

    Args:
        out_dir: Folder, made if needed.
        submission: Whether to write dense arrays as the Occ3D benchmark wants them, instead of the
            sparse form (see :mod:`loaders.predictions`).
    """

    def __init__(self, out_dir: str, submission: bool = False) -> None:
        super().__init__(collect_device="cpu", prefix=None)
        self._folder = Path(out_dir)
        self._submission = submission

    def process(self, data_batch: Any, data_samples: Sequence[DataSample]) -> None:
        """Writes the files of one batch."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for sample in data_samples:
            if sample.get("replaces") is None:
                self.results.append(self._save(sample))
            else:
                self.results.append(None)

    def compute_metrics(self, results: list[str | None]) -> dict[str, float]:
        """Says how many files were written."""
        name = "submission_files" if self._submission else "saved_predictions"
        return {name: len({token for token in results if token is not None})}

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
            return token
        pc_range = np.array(require(sample, "pc_range", remedy))
        voxel_size = np.array(require(sample, "voxel_size", remedy))
        shape = np.round((pc_range[3:] - pc_range[:3]) / voxel_size).astype(int).tolist()
        empty_label = len(require(sample, "class_names", remedy))
        save_submission(self._folder, token, coords, labels, tuple(shape), empty_label)
        return token
