"""Measure a model's frames per second and the stages of a frame.

    python scripts/timing.py CONFIG [--weights FILE] [--from-files]

By default, the input is synthetic with the config's sizes, and neither data nor weights are needed.
Batches are timed from host memory to the predictions, including the wait for the device, but
without the data loader. There are two ways to run the model: streaming, in which every sample has
one new frame, and independent, in which all its frames are new. --from-files reads the config's
test split, and also measures the rate with the loader. Random weights are used if none are given;
the number of predicted voxels then differs from that of a trained model.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from models.detectors import OPUS
from scripts.runtime.atomic_write import check_file_target
from scripts.runtime.building import named_config_keys
from scripts.runtime.checkpoint import load_weights
from scripts.runtime.command_line import (
    CommandParser,
    add_config_arguments,
    number_from,
    run_command,
)
from scripts.runtime.config import load_config
from scripts.runtime.environment import git_commit, package_versions
from scripts.runtime.errors import ConfigError
from scripts.runtime.fit import fit_config
from scripts.runtime.host_allocator import keep_freed_memory
from scripts.runtime.launch import Launch
from scripts.runtime.model_options import compile_parts
from scripts.runtime.report import write_report_json
from scripts.timings.inputs import InputSizes, SyntheticDrive, vary_zero_weights
from scripts.timings.measure import Batch, Rate, Stopwatch, streaming
from scripts.timings.report import Timing, as_text, as_values

WAYS = ("streaming", "independent")
KEPT_BATCHES = 40  # batches of a data set that are timed without its loader


def command_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--weights", help="checkpoint (default: random weights)")
    parser.add_argument("--samples", type=number_from(1), default=500, help="at most, per way")
    parser.add_argument("--warmup", type=number_from(0), default=10, help="warm-up batches")
    parser.add_argument(
        "--seconds", type=number_from(0, float), default=20.0, help="at most, per way"
    )
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=WAYS, help="ways to run it (default: both)"
    )
    parser.add_argument("--batch-size", type=number_from(1), default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if available")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "auto"],
        help="precision of the image network (default: the config's)",
    )
    parser.add_argument(
        "--from-files", action="store_true", help="read the test split; also time its loader"
    )
    parser.add_argument("--json", metavar="FILE", help="also write everything as JSON")
    return parser


def build_model(cfg: Config, device: torch.device, weights: str | None) -> OPUS:
    """Build the model of a resolved config for evaluation on a device.

    Raises:
        ConfigError: The config's model is not one of this project's detectors.
        CheckpointError: The weights cannot be read or belong to another model.
    """
    init_default_scope(cfg.get("default_scope", "mmengine"))
    torch.manual_seed(0)
    with named_config_keys(cfg):
        model = MODELS.build(cfg.model)
    if not isinstance(model, OPUS):
        raise ConfigError(
            f"model.type is {type(model).__name__}, only OPUS and derived classes can be timed"
        )
    vary_zero_weights(model)
    if weights is not None:
        load_weights(model, weights)
    model = model.to(device).eval().requires_grad_(False)
    compile_parts(model, cfg.get("compile"))
    return model


def choose_device(name: str | None) -> torch.device:
    """Return the requested device, by default a GPU if available.

    Raises:
        ConfigError: There is no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU, use --device cpu")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def time_model(args: argparse.Namespace) -> Timing:
    """Do all measurements of a command line."""
    keep_freed_memory()
    cfg = load_config(args.config, args.cfg_options)
    device = choose_device(args.device)
    if args.dtype is not None:
        cfg.model.eval_dtype = args.dtype
    model = build_model(cfg, device, args.weights)
    watch = Stopwatch(model, args.warmup, args.samples, args.seconds)
    source = FileSource(cfg, args.batch_size) if args.from_files else None

    def batches() -> Iterable[Batch]:
        if source is None:
            return SyntheticDrive(InputSizes.of(cfg)).batches(args.batch_size)
        # read into memory first, so that no loader runs meanwhile
        return repeated(list(itertools.islice(source, KEPT_BATCHES)), model)

    rates: list[Rate] = []
    for mode in args.ways:
        with streaming(model, mode == "streaming"):
            rates.append(watch.rate(mode, batches(), args.batch_size))
    if source is not None:
        with streaming(model, True):
            endless = repeated(source, model)
            rates.append(watch.rate_with_loader("streaming from files", endless, args.batch_size))
    with streaming(model, True):
        anatomy = watch.anatomy(batches())
    return Timing(_facts(args, cfg, device), rates, anatomy)


class FileSource:
    """Batches of a config's test split; each iteration starts from the first one.

    Args:
        cfg: The resolved config.
        batch_size: Samples per batch.
    """

    def __init__(self, cfg: Config, batch_size: int) -> None:
        fitted = copy.deepcopy(cfg)
        if fitted.get("test_dataloader") is None:
            raise ConfigError("the config has no test_dataloader: leave --from-files out")
        fitted.test_dataloader.batch_size = batch_size
        fit_config(fitted, Launch(), trains=False)
        with named_config_keys(fitted):
            self._loader = Runner.build_dataloader(fitted.test_dataloader, seed=0)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)


def repeated(batches: Iterable[Batch], model: OPUS) -> Iterator[Batch]:
    """Yield batches endlessly, each time without the features of the time before.

    A split with fewer frames than the cache would otherwise be read from the cache.
    """
    while True:
        model.cache.forget()
        yield from batches


def _facts(args: argparse.Namespace, cfg: Config, device: torch.device) -> dict[str, Any]:
    sizes = InputSizes.of(cfg)
    return {
        "config": args.config,
        "weights": args.weights or "random",
        "input": "test split" if args.from_files else "synthetic",
        "images": f"{sizes.num_frames} frames of {sizes.num_cams} cameras, "
        f"{sizes.img_hw[1]} x {sizes.img_hw[0]} pixels",
        "batch size": args.batch_size,
        "image network": cfg.model.get("eval_dtype") or "float32",
        "compiled": bool(cfg.get("compile")),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _processor(),
        "torch": package_versions()["torch"],
        "commit": git_commit(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    rows = path.read_text().splitlines() if path.exists() else []
    names = [row.split(":", 1)[1].strip() for row in rows if row.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def run(args: argparse.Namespace) -> None:
        if args.json is not None:
            check_file_target("--json", args.json)
        timing = time_model(args)
        print(as_text(timing))
        if args.json is not None:
            write_report_json(args.json, as_values(timing))

    return run_command(command_parser(), run, arguments)
