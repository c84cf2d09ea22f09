"""Score predictions on disk, of val.py or of another system, without a model.

    python -m scripts.score_predictions --config CONFIG --predictions DIR [--out scores.json]

DIR holds a file `<sample token>.npz` per sample of the config's test split, in one of the forms of
`loaders/predictions.py`: `coords` [n, 3] and `labels` [n] of the occupied voxels, or a dense label
grid `semantics` [X, Y, Z].
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import DictAction
from mmengine.registry import init_default_scope

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from loaders.errors import MissingDataError
from loaders.predictions import load_prediction, prediction_path
from loaders.sample import OccSample
from scripts.runtime.config import load_config
from scripts.runtime.errors import run_entry_point
from scripts.runtime.evaluators import MASKS, choose_masks
from scripts.runtime.report import report_table, score_report, write_report
from scripts.scoring import split_scorer


def score_folder(
    config: str,
    options: Mapping[str, Any],
    folder: Path,
    workers: int,
    masks: Sequence[str] = (),
) -> dict:
    """Returns the scores of a folder's predictions, as val.py reports them.

    Args:
        config: Config file.
        options: `--cfg-options`.
        folder: With a prediction per sample.
        workers: Processes; 0 works in this one.
        masks: See :func:`scripts.runtime.evaluators.choose_masks`.

    Raises:
        MissingDataError: If the folder or a prediction does not exist.
        BadDataError: If a prediction is broken or does not fit.
    """
    if not folder.is_dir():
        raise MissingDataError(f"folder {folder} does not exist: give the one with the predictions")
    start = time.monotonic()
    cfg = load_config(config, options)
    choose_masks(cfg, masks)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    scorer = split_scorer(cfg)

    def read(sample: OccSample) -> Mapping[str, Any]:
        path = prediction_path(folder, sample.sample_token)
        return load_prediction(path, sample.grid_shape, len(sample.class_names))

    metrics = scorer.score({"predictions": read}, workers)["predictions"]
    return score_report(
        metrics,
        config=config,
        cfg_options=dict(options),
        predictions=str(folder),
        processes=max(1, workers),
        num_samples=len(scorer.dataset),
        seconds=time.monotonic() - start,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--predictions", required=True, type=Path, metavar="DIR")
    parser.add_argument("--out", metavar="FILE", help="scores as JSON")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: this one (default)")
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=(), help="voxels that count")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(arguments)

    def run() -> None:
        report = score_folder(
            args.config, args.cfg_options, args.predictions, args.workers, args.masks
        )
        print(report_table(report))
        if args.out:
            print(f"written to {write_report(args.out, report)}")

    return run_entry_point(run, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
