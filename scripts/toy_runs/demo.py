"""The whole path in one command: toy data, training, scores against a blind prior, pictures.

    python scripts/demo.py            # `make demo`: minutes on two cores
    python scripts/demo.py --long     # `make toy-train`: the longer run

Each step is one of the project's commands in a process of its own, and writes to data/, work_dirs/
and outputs/ of the current folder. A step whose inputs are those of its last run is skipped; an
interrupted training is resumed. The command ends with a table and fails (exit code 2) if the model
does not beat the prior as it should.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.errors import UserError
from scripts.runtime.atomic_write import write_json
from scripts.runtime.command_line import CommandParser, config_file, run_command
from scripts.runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
DATA_ROOT = Path("data/toy_nuscenes")
DATA_STEPS = Path("data/.toy_nuscenes_steps.json")
DEMO_CONFIG = str(ROOT / "configs/toy/opusv2-nano_toy.py")
LONG_CONFIG = str(ROOT / "configs/toy/opusv2-nano_toy_long.py")
METRICS = {"mIoU": "occ3d/mIoU", "RayIoU": "ray/RayIoU"}
# What scores and pictures depend on, besides config and checkpoint.
SCORING_SOURCE = ("models", "loaders", "scripts", "val.py", "visualize.py")
# How many times the prior's score the model must reach, for (mIoU, RayIoU).
DEMO_FACTORS = (1.0, 1.0)
LONG_FACTORS = (1.0, 1.5)


class StepFailed(UserError, RuntimeError):  # noqa: N818 - reads as what happened
    """A command of the demo ended with an error (which it has printed itself)."""


@dataclass
class Record:
    """What the last run of a step did and cost."""

    key: str
    seconds: float
    peak_memory_mb: float


@dataclass
class Steps:
    """Runs commands, measures them, and remembers what they were run on.

    Attributes:
        path: File that holds the records between calls.
        records: Step name to its last complete run.
    """

    path: Path
    records: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Steps:
        """Read the records of earlier calls (none if there is no such file)."""
        records = {}
        if path.is_file():
            try:
                for name, record in json.loads(path.read_text()).items():
                    records[name] = Record(**record)
            except (ValueError, TypeError, AttributeError) as error:
                raise ConfigError(f"{path} is damaged ({error}): remove it") from error
        return cls(path, records)

    def run(self, name: str, command: Sequence[str], key: str, outputs: Sequence[Path]) -> bool:
        """Run one step unless its outputs exist and its key is that of the last run.

        Returns:
            Whether the command was run.

        Raises:
            StepFailed: The command ended with an error, or left an output out.
        """
        record = self.records.get(name)
        if record is not None and record.key == key and all(out.exists() for out in outputs):
            print(f"== {name}: done before, kept", flush=True)
            return False
        print(f"== {name}: {shlex.join(command)}", flush=True)
        seconds, memory_mb, code = _measure([sys.executable, *command])
        if code:
            raise StepFailed(f"step '{name}' failed with exit code {code}")
        for out in outputs:
            if not out.exists():
                raise StepFailed(f"step '{name}' did not write {out}")
        self.records[name] = Record(key, seconds, memory_mb)
        write_json(self.path, {step: asdict(entry) for step, entry in self.records.items()}, 2)
        print(f"== {name}: {seconds:.0f} s, peak memory {memory_mb:.0f} MB", flush=True)
        return True


def _measure(command: Sequence[str]) -> tuple[float, float, int]:
    """Run a command; wall time in s, peak memory of its largest process in MB, exit code."""
    start = time.monotonic()
    process = subprocess.Popen(command)
    while True:
        try:
            _, status, usage = os.wait4(process.pid, 0)
            break
        except KeyboardInterrupt:  # the terminal sent it to the step too, which ends by itself
            print("waiting for the step to stop", flush=True)
    process.returncode = os.waitstatus_to_exitcode(status)
    return time.monotonic() - start, usage.ru_maxrss * 1024 / 1e6, process.returncode


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _source_key(folders: Sequence[str]) -> str:
    """Return the hash of the source files below some folders (or of single files)."""
    suffixes = (".py", ".cpp", ".h", ".cu", ".cuh")
    files: list[Path] = []
    for name in folders:
        path = ROOT / name
        found = [path] if path.is_file() else path.rglob("*")
        files += [file for file in found if file.suffix in suffixes]
    return _hash(*(file.read_bytes() for file in sorted(files)))


PRINT_CONFIG = """
import sys
from scripts.runtime.config import load_config
print(load_config(sys.argv[1]).pretty_text)
"""


def _config_key(config: str) -> str:
    """Return the hash of a config with its `_base_` files merged.

    Read in a process of its own: this one stays small, since the peak memory that Linux reports for
    a started process is never below that of the process which started it.
    """
    command = [sys.executable, "-c", PRINT_CONFIG, config]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"config {config} cannot be read: {reason}")
    return _hash(done.stdout)


def run_demo(config: str, factors: tuple[float, float]) -> None:
    """Run all steps for a config and print the table.

    Raises:
        ConfigError: The config cannot be read.
        StepFailed: A step failed, or the model scored below `factors` times the prior.
    """
    stem = Path(config).stem
    work_dir, pictures = Path("work_dirs", stem), Path("outputs", stem)
    steps = Steps.load(work_dir / "demo_steps.json")

    data_key = make_data()
    weights = train_model(steps, config, work_dir, data_key)
    scores = score_model(steps, config, weights, work_dir)
    prior = score_prior(steps, config, data_key, work_dir)
    steps.run(
        "pictures",
        [
            *(str(ROOT / "visualize.py"), "--config", config, "--weights", str(weights)),
            *("--vis-input", "--vis-gt", "--out", str(pictures)),
        ],
        _hash(_config_key(config), weights.read_bytes(), _source_key(SCORING_SOURCE)),
        [pictures],
    )
    report(steps, scores, prior, pictures, factors)


def make_data() -> str:
    """Make the toy data set and its info files if needed; returns a key of their content."""
    infos = [DATA_ROOT / f"nuscenes_infos_{split}_mini_sweep.pkl" for split in ("train", "val")]
    steps = Steps.load(DATA_STEPS)
    # The generator itself knows whether a folder is complete and of the wanted options.
    tables = DATA_ROOT / "v1.0-mini"
    command = [str(ROOT / "scripts/make_toy_nuscenes.py"), "--out", str(DATA_ROOT)]
    steps.run("toy data", command, "default options", [tables / "sample.json", DATA_ROOT / "gts"])
    # Options, version of the generator, and tables tell one data set from another.
    made = [DATA_ROOT / "toy_nuscenes.json", *sorted(tables.glob("*.json"))]
    table_key = _hash(*(path.read_bytes() for path in made))
    steps.run(
        "info files",
        [
            *(str(ROOT / "scripts/gen_sweep_info.py"), "--data-root", str(DATA_ROOT)),
            *("--version", "v1.0-mini"),
        ],
        _hash(table_key, _source_key(["scripts/gen_sweep_info.py", "scripts/sweep_infos"])),
        infos,
    )
    return _hash(table_key, *(path.read_bytes() for path in infos))


def train_model(steps: Steps, config: str, work_dir: Path, data_key: str) -> Path:
    """Train unless done before on the same config and data; returns the last checkpoint."""
    key = _hash(_config_key(config), data_key)
    pointer, started = work_dir / "last_checkpoint", work_dir / "demo_training_key"
    command = [str(ROOT / "train.py"), "--config", config, "--work-dir", str(work_dir)]
    if started.is_file() and started.read_text() == key and pointer.is_file():
        command.append("--resume")  # of no effect on a finished run, which is kept as it is
    else:
        pointer.unlink(missing_ok=True)
        work_dir.mkdir(parents=True, exist_ok=True)
        started.write_text(key)
    steps.run("training", command, key, [pointer])
    weights = Path(pointer.read_text().strip())
    if not weights.is_file():
        raise StepFailed(f"{pointer} names {weights}, which is gone: remove {work_dir}")
    return weights


def score_model(
    steps: Steps, config: str, weights: Path, work_dir: Path, options: Sequence[str] = ()
) -> Path:
    """Score a checkpoint on the held-out scenes; returns the file of the scores.

    Args:
        steps: Records of what was done before.
        config: Config file.
        weights: Checkpoint.
        work_dir: Folder for the file.
        options: `--cfg-options`; scores with options have a step and a file of their own.
    """
    name = "-".join(["scores", *options])
    out = work_dir / f"{name}.json"
    command = [str(ROOT / "val.py"), "--config", config, "--weights", str(weights)]
    command += ["--out", str(out)]
    key = _hash(_config_key(config), weights.read_bytes(), _source_key(SCORING_SOURCE))
    steps.run(name, command + _cfg_options(options), key, [out])
    return out


def score_prior(
    steps: Steps, config: str, data_key: str, work_dir: Path, options: Sequence[str] = ()
) -> Path:
    """Score the image-blind prior as `score_model` scores a checkpoint."""
    name = "-".join(["prior", *options])
    out = work_dir / f"{name}.json"
    command = [str(ROOT / "scripts/evaluate_prior.py"), "--config", config, "--out", str(out)]
    key = _hash(_config_key(config), data_key, _source_key(SCORING_SOURCE))
    steps.run(name, command + _cfg_options(options), key, [out])
    return out


def _cfg_options(options: Sequence[str]) -> list[str]:
    return ["--cfg-options", *options] if options else []


def report(
    steps: Steps, scores: Path, prior: Path, pictures: Path, factors: tuple[float, float]
) -> None:
    """Print costs and scores; raise StepFailed if the model is not good enough."""
    model = json.loads(scores.read_text())["metrics"]
    blind = json.loads(prior.read_text())["metrics"]
    data_steps = Steps.load(DATA_STEPS)
    print("\n| step | time | peak memory of a process |\n|---|---|---|")
    for name, record in {**data_steps.records, **steps.records}.items():
        print(f"| {name} | {record.seconds:.0f} s | {record.peak_memory_mb:.0f} MB |")
    print("\n| held-out scenes | image-blind prior | model | factor |\n|---|---|---|---|")
    failures = []
    for (name, metric), wanted in zip(METRICS.items(), factors, strict=True):
        ours, theirs = _score(model, metric, scores), _score(blind, metric, prior)
        factor = ours / theirs if theirs else float("inf")
        print(f"| {name} | {theirs:.2f} | **{ours:.2f}** | {factor:.2f} |")
        if not (factor > wanted if wanted == 1.0 else factor >= wanted):
            failures.append(f"{name} is {factor:.2f} times the prior's, wanted {wanted:.1f}")
    print(f"\npictures: {pictures}/", flush=True)
    if failures:
        raise StepFailed("the model is too weak: " + "; ".join(failures))


def _score(metrics: dict[str, Any], name: str, source: Path) -> float:
    value = metrics.get(name)
    if value is None:
        raise ConfigError(f"{source} has no score '{name}': the config's evaluators must give it")
    return float(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument("--long", action="store_true", help="the longer run (make toy-train)")
    parser.add_argument("--config", type=config_file, help=f"default: {DEMO_CONFIG}")

    def run(args: argparse.Namespace) -> None:
        config = args.config or (LONG_CONFIG if args.long else DEMO_CONFIG)
        run_demo(config, LONG_FACTORS if args.long else DEMO_FACTORS)

    return run_command(parser, run, arguments)
