"""Score the image-blind prior: each voxel's most frequent training label.

    python scripts/evaluate_prior.py CONFIG [--out prior.json]

This is the score of a model that has learned nothing from images. Two variants are scored on the
config's evaluation split with its metrics:

- `all`: counts the labels of all voxels in all training samples;
- `visible`: counts only voxels that the benchmark scores: those visible to a camera (`mask_camera`,
  as in training and in Occ3D's mIoU) or, if the labels have no such mask, those that are not noise
  (`mask_valid`, OpenOccupancy). A voxel without any count takes its label from `all`.

The result under `metrics` is the better of the two for each metric, so that a model is compared
with the stronger baseline.

Legend: X Y Z voxels, K semantic classes (label K is free).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from tqdm import tqdm

from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.sample import UNKNOWN_LABEL, OccSample
from scripts.runtime.atomic_write import check_file_target
from scripts.runtime.building import named_config_keys
from scripts.runtime.command_line import (
    CommandParser,
    add_config_arguments,
    number_from,
    run_command,
)
from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.report import score_report, write_report_json
from scripts.scoring.scorer import Scorer, labels_only

VARIANTS = ("all", "visible")
Grid = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.integer[Any]]


def _samples(dataset: OccupancyDataset, what: str) -> Iterator[OccSample]:
    for index in tqdm(range(len(dataset)), desc=what, unit="sample", disable=None):
        yield dataset[index]


def count_labels(dataset: OccupancyDataset) -> tuple[Counts, ...]:
    """Return the count of each label in each voxel over a data set.

    Returns:
        One integer array [K + 1, X, Y, Z] for each of VARIANTS.
    """
    counts: Counts | None = None
    for sample in _samples(dataset, "counting training labels"):
        labels = sample.voxel_semantics
        assert labels is not None
        free = len(sample.class_names)
        if counts is None:
            shape = (len(VARIANTS), free + 1, *labels.shape)
            # Full OpenOccupancy grids have 10 million voxels: use the smallest sufficient type.
            counts = np.zeros(shape, np.min_scalar_type(len(dataset)))
        known = labels != UNKNOWN_LABEL
        index = np.nonzero((labels != free) & known)
        scored_voxels = _scored_voxels(sample)
        if not known.all():
            scored_voxels = known if scored_voxels is None else known & scored_voxels
        everywhere = None if known.all() else known
        for count, scored in zip(counts, (everywhere, scored_voxels), strict=True):
            # Until the end, the entry of the free label holds the total count of a voxel.
            count[free] += 1 if scored is None else scored
            seen = slice(None) if scored is None else scored[index]
            x, y, z = (axis[seen] for axis in index)
            count[labels[x, y, z], x, y, z] += 1
    if counts is None:
        raise ConfigError("the training split is empty: no labels to count")
    for count in counts:
        for occupied in count[:-1]:
            count[-1] -= occupied
    return tuple(counts)


def _scored_voxels(sample: OccSample) -> npt.NDArray[np.bool_] | None:
    """Return bool [X, Y, Z], the voxels that the benchmark scores; None if it scores all."""
    return sample.mask_valid if sample.mask_camera is None else sample.mask_camera


def prior_grids(counts_all: Counts, counts_visible: Counts) -> dict[str, Grid]:
    """Return the most frequent label of every voxel (the lowest in case of a tie).

    Args:
        counts_all: Integer counts [K + 1, X, Y, Z] over all samples.
        counts_visible: Counts over the samples in which the voxel is scored.

    Returns:
        Labels uint8 [X, Y, Z] by variant name.
    """
    # A voxel that is never observed is free.
    is_known = counts_all.any(axis=0)
    everywhere = np.where(is_known, counts_all.argmax(axis=0), len(counts_all) - 1).astype(np.uint8)
    seen = counts_visible.any(axis=0)
    visible = np.where(seen, counts_visible.argmax(axis=0).astype(np.uint8), everywhere)
    return {"all": everywhere, "visible": visible}


def as_prediction(grid: Grid, free_label: int) -> dict[str, npt.NDArray[np.int64]]:
    """Return a label grid [X, Y, Z] in the sparse format of predictions."""
    coords = np.argwhere(grid != free_label)
    return {"pred_coords": coords, "pred_labels": grid[tuple(coords.T)].astype(np.int64)}


def score_grids(
    grids: Mapping[str, Grid], cfg: Config, workers: int = 0
) -> dict[str, dict[str, float]]:
    """Return the scores of fixed label grids on the evaluation split with the config's metrics.

    Args:
        grids: Labels [X, Y, Z] by variant name, used as prediction for every sample.
        cfg: Config with `val_dataloader` and `val_evaluator`.
        workers: Number of processes; 0 runs in this process.

    Returns:
        Values by metric name, by variant name.
    """
    scorer = Scorer(cfg.val_dataloader.dataset, cfg.val_evaluator)
    free_label = len(scorer.dataset.metainfo["class_names"])
    predictions = {name: as_prediction(grid, free_label) for name, grid in grids.items()}
    predictors = {name: lambda _, found=found: found for name, found in predictions.items()}
    return scorer.score(predictors, workers)


def evaluate_prior(cfg: Config, workers: int = 0) -> dict[str, dict[str, float]]:
    """Count, then score; return metrics by variant name, and the better of each as `stronger`."""
    init_default_scope(cfg.get("default_scope", "mmengine"))
    with named_config_keys(cfg):
        train = DATASETS.build(labels_only(cfg.train_dataloader.dataset))
        scores = score_grids(prior_grids(*count_labels(train)), cfg, workers)
    names = scores[VARIANTS[0]]
    stronger = {key: max(scores[name].get(key, 0.0) for name in VARIANTS) for key in names}
    return {**scores, "stronger": stronger}


def run(args: argparse.Namespace) -> None:
    """Run the command with parsed arguments."""
    start = time.monotonic()
    if args.out is not None:
        check_file_target("--out", args.out)
    cfg = load_config(args.config, args.cfg_options)
    scores = evaluate_prior(cfg, args.workers)
    summary = [key for key in scores["stronger"] if "IoU_" not in key]
    width = max(map(len, summary))
    print(f"{'image-blind prior':<{width}}" + "".join(f"{name:>12}" for name in scores))
    for key in summary:
        print(f"{key:<{width}}" + "".join(f"{scores[name][key]:12.2f}" for name in scores))
    if args.out:
        report = score_report(
            scores["stronger"],
            variants={name: scores[name] for name in VARIANTS},
            config=args.config,
            seconds=time.monotonic() - start,
        )
        print(f"written to {write_report_json(args.out, report)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--out", metavar="FILE", help="scores as JSON")
    parser.add_argument(
        "--workers", type=number_from(0), default=0, help="processes for scoring (default: 0)"
    )
    return run_command(parser, run, arguments)
