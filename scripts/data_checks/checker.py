"""Check the data of a config for missing, truncated or inconsistent files.

    python scripts/check_data.py CONFIG [--full] [--cfg-options KEY=VALUE ...]

Checks every split that the config loads: the info file (hash, counts, tokens), all poses,
calibrations and time stamps, their consistency (principal points, motion, units), and the files of
key frames: images (decoded), LiDAR and labels (shapes, classes, agreement with the LiDAR returns).
By default, evenly spread key frames are checked for --seconds; with --full, every file is checked
once. The exit code is 1 if there are findings, and 2 if the config is invalid.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope
from tqdm import tqdm

from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.datasets.wrappers import check_alike, leaf_configs
from loaders.errors import BadDataError, MissingDataError
from loaders.transforms.cache import without_caches
from scripts.data_checks.consistency import check_together
from scripts.data_checks.files import FileChecker
from scripts.data_checks.findings import Findings
from scripts.data_checks.infos import Finding, check_frames, check_info_file
from scripts.runtime.building import named_config_keys
from scripts.runtime.command_line import (
    CommandParser,
    add_config_arguments,
    number_from,
    run_command,
)
from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError

EXIT_FINDINGS = 1
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2

_checker: FileChecker | None = None  # inherited by forked worker processes


def data_sets(cfg: Config) -> dict[str, list[dict[str, Any]]]:
    """Return the configs of the data sets that a config loads, by split, without wrappers.

    Raises:
        ConfigError: The config loads none.
    """
    splits: dict[str, list[dict[str, Any]]] = {}
    for split in ("train", "val", "test"):
        loader = cfg.get(f"{split}_dataloader")
        if loader:
            splits[split] = [_for_check(leaf) for leaf in leaf_configs(loader["dataset"].to_dict())]
    if not splits:
        raise ConfigError("the config has no train_dataloader, val_dataloader or test_dataloader")
    return splits


def _for_check(dataset_cfg: dict[str, Any]) -> dict[str, Any]:
    """Return a config that reads every file once, reports damaged files, and does not augment."""
    pipeline = without_caches(dataset_cfg.get("pipeline", []))
    kept = {key: value for key, value in dataset_cfg.items() if key != "on_error"}
    return {**kept, "pipeline": pipeline, "test_mode": True}


def spread_order(number: int) -> list[int]:
    """Return 0 ... number - 1 in an order of which every prefix is evenly spread."""
    step = max(1, round(number * _GOLDEN_RATIO))
    while math.gcd(step, number) > 1:
        step += 1
    return [i * step % number for i in range(number)]


def _check_in_worker(index: int) -> tuple[int, list[Finding]]:
    assert _checker is not None
    return _checker.check(index)


def check_files(
    checker: FileChecker, order: Sequence[int], workers: int, deadline: float
) -> Iterator[tuple[int, list[Finding]]]:
    """Yield the number of files and the findings of samples, until the deadline.

    Args:
        checker: Checker of a data set.
        order: Indices of the samples.
        workers: Number of processes; 0 runs in this process.
        deadline: Deadline in terms of `time.monotonic()`.
    """
    global _checker
    if workers < 2:
        for index in order:
            if time.monotonic() > deadline:
                return
            yield checker.check(index)
        return
    _checker = checker
    left, running = iter(order), set[Future[tuple[int, list[Finding]]]]()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        while True:
            room = 2 * workers - len(running) if time.monotonic() < deadline else 0
            running |= {
                pool.submit(_check_in_worker, index) for index in itertools.islice(left, room)
            }
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def check_data_set(
    name: str, dataset: BaseDataset, findings: Findings, workers: int, seconds: float | None
) -> str:
    """Check a data set and add to `findings`.

    Args:
        name: Name of the split.
        dataset: Data set built in test mode.
        findings: Findings; extended in place.
        workers: Number of processes that open files.
        seconds: Time limit for opening files; None opens all.

    Returns:
        A sentence with the number of opened files.
    """
    files_checker = FileChecker(dataset)
    if isinstance(dataset, OccupancyDataset):
        findings.extend(check_info_file(dataset))
        findings.extend(check_frames(dataset))
        findings.extend(check_together(dataset, files_checker.image_hw))
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    samples = files = 0
    results = check_files(files_checker, spread_order(len(dataset)), workers, deadline)
    for opened, new in tqdm(results, desc=name, total=len(dataset), unit="sample", disable=None):
        samples, files = samples + 1, files + opened
        findings.extend(new)
    return f"{name}: opened {files} files of {samples} of {len(dataset)} samples"


def check(cfg: Config, workers: int, seconds: float | None) -> Findings:
    """Check all data sets of a config, each once, and print the findings.

    Args:
        cfg: Config with data loaders.
        workers: Number of processes.
        seconds: Time limit for all data sets together; None opens every file.

    Raises:
        ConfigError: The config loads no data set.
        LoaderConfigError: The data sets of a split do not fit together.
    """
    init_default_scope(cfg.get("default_scope", "mmengine"))
    findings = Findings()
    datasets: dict[str, BaseDataset] = {}
    known: list[tuple[dict[str, Any], BaseDataset | None]] = []
    for split, leaves in data_sets(cfg).items():
        parts: list[BaseDataset | None] = []
        for number, leaf in enumerate(leaves, start=1):
            name = split if len(leaves) == 1 else f"{split}, data set {number}"
            if not any(leaf == other for other, _ in known):
                dataset = _build(name, leaf, cfg, findings)
                known.append((leaf, dataset))
                if dataset is not None:
                    datasets[name] = dataset
            parts.append(next(dataset for other, dataset in known if other == leaf))
        built = [dataset for dataset in parts if dataset is not None]
        if built:
            check_alike(built)
    for name, dataset in datasets.items():
        share = None if seconds is None else seconds / len(datasets)
        print(check_data_set(name, dataset, findings, workers, share))
    print(findings.report())
    return findings


def _build(
    name: str, dataset_cfg: dict[str, Any], cfg: Config, findings: Findings
) -> BaseDataset | None:
    """Build a data set; add a finding and return None if its info file cannot be used."""
    try:
        with named_config_keys(cfg):
            dataset: BaseDataset = DATASETS.build(dataset_cfg)
            return dataset
    except (MissingDataError, BadDataError) as error:
        findings.add(f"data set {name}", error.kind, str(error))
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--full", action="store_true", help="open every file")
    parser.add_argument(
        "--seconds",
        type=number_from(0.0, float),
        default=60.0,
        help="time limit without --full (default: 60)",
    )
    parser.add_argument(
        "--workers", type=number_from(0), default=2, help="number of processes (default: 2)"
    )

    def run(args: argparse.Namespace) -> int:
        cfg = load_config(args.config, args.cfg_options)
        findings = check(cfg, args.workers, None if args.full else args.seconds)
        return EXIT_FINDINGS if findings.total else 0

    return run_command(parser, run, arguments)
