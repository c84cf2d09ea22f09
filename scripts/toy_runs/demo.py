"""Toy data, training, scores against an image-blind prior, and pictures in one command.

    python scripts/demo.py            # `make demo`: minutes on two cores
    python scripts/demo.py --long     # `make toy-train`: a longer run

The demo scores and draws the model in pretrain/ (`make toy-pretrain`) on the held-out scenes, then
fine-tunes it on the training scenes. The longer run starts from the image network of that model.
Without the file, both train from scratch. `--from-scratch` adds a training from scratch, and
`--skip` omits steps.

Each step runs one of the project's commands in a separate process and writes to data/, work_dirs/
and outputs/ of the current folder. A step with unchanged inputs is skipped; an interrupted training
is resumed. The command prints a table and fails (exit code 2) if the scores of the model are below
the required multiples of the prior's.
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.errors import UserError
from scripts.runtime.atomic_write import write_json
from scripts.runtime.command_line import CommandParser, config_file, run_command
from scripts.runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class ToyData:
    """A data set of the generator.

    Attributes:
        root: Its folder.
        version: nuScenes version of the tables.
        options: Arguments of the generator, except the folder.
    """

    root: Path
    version: str = "v1.0-mini"
    options: tuple[str, ...] = ()

    @property
    def steps(self) -> Path:
        """File with the records of the generating steps."""
        return self.root.with_name(f".{self.root.name}_steps.json")

    @property
    def infos(self) -> list[Path]:
        """Info files of the data set."""
        kind = "_mini" if self.version == "v1.0-mini" else ""
        names = (f"nuscenes_infos_{split}{kind}_sweep.pkl" for split in ("train", "val"))
        return [self.root / name for name in names]


TOY = ToyData(Path("data/toy_nuscenes"))
# Other scenes with two key frames each, in varied lighting. A model learns more from a new street
# than from another half second in the same one.
PRETRAIN = ToyData(
    Path("data/toy_pretrain"),
    "v1.0-trainval",
    ("--scenes", "300", "--samples", "2", "--seed", "1000"),
)
DATA_SETS = {"toy": TOY, "pretrain": PRETRAIN}
DEMO_CONFIG = str(ROOT / "configs/toy/opusv2-nano_toy.py")
LONG_CONFIG = str(ROOT / "configs/toy/opusv2-nano_toy_long.py")
FINE_TUNING_CONFIG = str(ROOT / "configs/toy/opusv2-nano_toy_finetune.py")
LONG_PRETRAINED_CONFIG = str(ROOT / "configs/toy/opusv2-nano_toy_long_pretrained.py")
SHIPPED = ROOT / "pretrain/opusv2-nano_toy.pth"
METRICS = {"mIoU": "occ3d/mIoU", "RayIoU": "ray/RayIoU"}
# Sources that scores and pictures depend on, in addition to config and checkpoint.
SCORING_SOURCE = ("models", "loaders", "scripts", "val.py", "visualize.py")
# Required multiples of the prior's scores (mIoU, RayIoU).
DEMO_FACTORS = (1.0, 1.0)
FINE_TUNING_FACTORS = (1.5, 2.0)
LONG_FACTORS = (1.0, 1.5)


class StepFailed(UserError, RuntimeError):  # noqa: N818 - named like an event
    """A command of the demo ended with an error, which it printed."""


@dataclass
class Record:
    """Key and cost of the last run of a step."""

    key: str
    seconds: float
    peak_memory_mb: float


@dataclass
class Steps:
    """Run commands, measure them, and record the keys of their inputs.

    Attributes:
        path: File of the records.
        records: Last complete run of each step, by name.
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
        """Run a step unless its outputs exist and its key is unchanged.

        Returns:
            Whether the command ran.

        Raises:
            StepFailed: The command ended with an error, or an output is missing.
        """
        record = self.records.get(name)
        if record is not None and record.key == key and all(out.exists() for out in outputs):
            print(f"== {name}: up to date", flush=True)
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
    """Run a command; return wall time in s, peak memory of its largest process in MB, exit code."""
    start = time.monotonic()
    process = subprocess.Popen(command)
    while True:
        try:
            _, status, usage = os.wait4(process.pid, 0)
            break
        except KeyboardInterrupt:  # the step received the same signal and stops
            print("waiting for the step to stop", flush=True)
    process.returncode = os.waitstatus_to_exitcode(status)
    return time.monotonic() - start, usage.ru_maxrss * 1024 / 1e6, process.returncode


def hash_of(*parts: str | bytes) -> str:
    """Return a short hash of texts or contents of files."""
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
    return hash_of(*(file.read_bytes() for file in sorted(files)))


PRINT_CONFIG = """
import sys
from scripts.runtime.config import load_config
print(load_config(sys.argv[1]).pretty_text)
"""


def _config_key(config: str) -> str:
    """Return the hash of a config with its `_base_` files merged.

    The config is read in a separate process to keep this one small: the peak memory that Linux
    reports for a started process is never below that of its parent.
    """
    command = [sys.executable, "-c", PRINT_CONFIG, config]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"config {config} cannot be read: {reason}")
    return hash_of(done.stdout)


SKIPPABLE = ("shipped", "fine-tuning", "pictures")


@dataclass(frozen=True)
class Plan:
    """Steps of a demo.

    Attributes:
        config: Config of the training.
        factors: Required multiples of the prior's (mIoU, RayIoU).
        shipped: Weights that are scored and drawn first, or None.
        start: Initial weights of the training, or None for the initialisation of the config.
        options: `--cfg-options` of the training and the steps after it.
        from_scratch: Config of an additional training from scratch, or None.
        pictures: Whether pictures are drawn.
        trains: Whether a model is trained.
    """

    config: str
    factors: tuple[float, float] = DEMO_FACTORS
    shipped: Path | None = None
    start: Path | None = None
    options: tuple[str, ...] = ()
    from_scratch: str | None = None
    pictures: bool = True
    trains: bool = True


def make_plan(
    *,
    config: str | None = None,
    long: bool = False,
    from_scratch: bool = False,
    skip: Sequence[str] = (),
    shipped: Path = SHIPPED,
) -> Plan:
    """Return the steps for the options of the command line.

    Args:
        config: A config to train instead of the demo's.
        long: Whether to make the longer run.
        from_scratch: Whether to train from scratch for comparison.
        skip: Steps to omit, of `SKIPPABLE`.
        shipped: File of the shipped model.

    Raises:
        ConfigError: No step is left.
    """
    pictures = "pictures" not in skip
    if config is not None or not shipped.is_file():
        if "fine-tuning" in skip and config is None:
            raise ConfigError(
                f"{shipped} does not exist, so there is nothing to fine-tune and nothing to show: "
                "remove --skip fine-tuning, or make the file with `make toy-pretrain`"
            )
        default, factors = (LONG_CONFIG, LONG_FACTORS) if long else (DEMO_CONFIG, DEMO_FACTORS)
        return Plan(config or default, factors, pictures=pictures)
    shown = None if "shipped" in skip else shipped
    if long:
        places = (f"{part}.init_cfg.checkpoint={shipped}" for part in ("img_backbone", "img_neck"))
        scratch = LONG_CONFIG if from_scratch else None
        return Plan(
            LONG_PRETRAINED_CONFIG, LONG_FACTORS, shown, None, tuple(places), scratch, pictures,
            "fine-tuning" not in skip,
        )  # fmt: skip
    scratch = DEMO_CONFIG if from_scratch else None
    trains = "fine-tuning" not in skip
    if not (shown or trains or scratch):
        raise ConfigError("--skip omits every step: keep shipped or fine-tuning")
    return Plan(
        FINE_TUNING_CONFIG, FINE_TUNING_FACTORS, shown, shipped, (), scratch, pictures, trains
    )


def run_demo(plan: Plan) -> None:
    """Run all steps and print the table.

    Raises:
        ConfigError: A config cannot be read.
        StepFailed: A step failed, or the model scored below its factors times the prior.
    """
    stem = Path(plan.config).stem
    work_dir, pictures = Path("work_dirs", stem), Path("outputs", stem)
    steps = Steps.load(work_dir / "demo_steps.json")
    data_key = make_data()
    prior = score_prior(steps, plan.config, data_key, work_dir)
    others: dict[str, Path] = {}
    if plan.shipped is not None:
        folder = Path("work_dirs", "shipped")
        own = Steps.load(folder / "demo_steps.json")
        others["shipped"] = score_model(own, DEMO_CONFIG, plan.shipped, folder)
        if plan.pictures:
            draw_pictures(own, DEMO_CONFIG, plan.shipped, Path("outputs", "shipped"))
        report_columns("held-out scenes", prior, others)
    scores = others.get("shipped")
    if plan.trains:
        weights = train_model(steps, plan.config, work_dir, data_key, plan.start, plan.options)
        scores = score_model(steps, plan.config, weights, work_dir, plan.options, "scores")
        if plan.pictures:
            draw_pictures(steps, plan.config, weights, pictures, plan.options)
    if plan.from_scratch is not None:
        folder = Path("work_dirs", Path(plan.from_scratch).stem)
        own = Steps.load(folder / "demo_steps.json")
        weights = train_model(own, plan.from_scratch, folder, data_key)
        others["from scratch"] = score_model(own, plan.from_scratch, weights, folder)
    if scores is None:
        report_columns("held-out scenes", prior, others)
        return
    report(steps, scores, prior, pictures, plan.factors, others)


def draw_pictures(
    steps: Steps, config: str, weights: Path, out: Path, options: Sequence[str] = ()
) -> None:
    """Draw predictions for the held-out scenes next to images and ground truth."""
    command = [str(ROOT / "visualize.py"), "--config", config, "--weights", str(weights)]
    command += ["--vis-input", "--vis-gt", "--out", str(out)]
    key = hash_of(_config_key(config), weights.read_bytes(), _source_key(SCORING_SOURCE))
    steps.run("pictures", command + _cfg_options(options), key, [out])


def make_data(data: ToyData = TOY) -> str:
    """Make a toy data set and its info files if needed; returns a key of their content."""
    steps = Steps.load(data.steps)
    # The generator checks whether a folder is complete and was made with these options.
    tables = data.root / data.version
    command = [str(ROOT / "scripts/make_toy_nuscenes.py"), "--out", str(data.root), *data.options]
    key = " ".join(data.options) or "default options"
    steps.run("toy data", command, key, [tables / "sample.json", data.root / "gts"])
    # Options, version of the generator, and tables identify a data set.
    made = [data.root / "toy_nuscenes.json", *sorted(tables.glob("*.json"))]
    table_key = hash_of(*(path.read_bytes() for path in made))
    steps.run(
        "info files",
        [
            *(str(ROOT / "scripts/gen_sweep_info.py"), "--data-root", str(data.root)),
            *("--version", data.version),
        ],
        hash_of(table_key, _source_key(["scripts/gen_sweep_info.py", "scripts/sweep_infos"])),
        data.infos,
    )
    return hash_of(table_key, *(path.read_bytes() for path in data.infos))


def train_model(
    steps: Steps,
    config: str,
    work_dir: Path,
    data_key: str,
    start: Path | None = None,
    options: Sequence[str] = (),
) -> Path:
    """Train if config or data have changed; return the last checkpoint.

    Args:
        steps: Records of earlier runs.
        config: Config file.
        work_dir: Folder of the training.
        data_key: Key of the data.
        start: Initial weights, or None for the initialisation of the config.
        options: `--cfg-options`.
    """
    given = [] if start is None else [start.read_bytes()]
    key = hash_of(_config_key(config), data_key, *given, *options)
    pointer, started = work_dir / "last_checkpoint", work_dir / "demo_training_key"
    command = [str(ROOT / "train.py"), "--config", config, "--work-dir", str(work_dir)]
    if started.is_file() and started.read_text() == key and pointer.is_file():
        command.append("--resume")  # a finished run is not changed
    else:
        pointer.unlink(missing_ok=True)
        if start is not None:
            command += ["--load-from", str(start)]
        work_dir.mkdir(parents=True, exist_ok=True)
        started.write_text(key)
    steps.run("training", command + _cfg_options(options), key, [pointer])
    weights = Path(pointer.read_text().strip())
    if not weights.is_file():
        raise StepFailed(f"{pointer} names {weights}, which does not exist: remove {work_dir}")
    return weights


def score_model(
    steps: Steps,
    config: str,
    weights: Path,
    work_dir: Path,
    options: Sequence[str] = (),
    name: str | None = None,
) -> Path:
    """Score a checkpoint on the held-out scenes; return the file of the scores.

    Args:
        steps: Records of earlier runs.
        config: Config file.
        weights: Checkpoint.
        work_dir: Folder for the file.
        options: `--cfg-options`; scores with other options are another step and file.
        name: Name of step and file; None derives it from the options.
    """
    name = name or "-".join(["scores", *options])
    out = work_dir / f"{name}.json"
    command = [str(ROOT / "val.py"), "--config", config, "--weights", str(weights)]
    command += ["--out", str(out), "--work-dir", str(work_dir / "evaluation")]
    key = hash_of(_config_key(config), weights.read_bytes(), _source_key(SCORING_SOURCE))
    steps.run(name, command + _cfg_options(options), key, [out])
    return out


def score_prior(
    steps: Steps, config: str, data_key: str, work_dir: Path, options: Sequence[str] = ()
) -> Path:
    """Score the image-blind prior as `score_model` scores a checkpoint."""
    name = "-".join(["prior", *options])
    out = work_dir / f"{name}.json"
    command = [str(ROOT / "scripts/evaluate_prior.py"), "--config", config, "--out", str(out)]
    key = hash_of(_config_key(config), data_key, _source_key(SCORING_SOURCE))
    steps.run(name, command + _cfg_options(options), key, [out])
    return out


def _cfg_options(options: Sequence[str]) -> list[str]:
    return ["--cfg-options", *options] if options else []


def report_columns(title: str, prior: Path, columns: Mapping[str, Path]) -> None:
    """Print the scores of the prior and of some models."""
    blind = json.loads(prior.read_text())["metrics"]
    print(f"\n| {' | '.join([title, 'image-blind prior', *columns])} |")
    print(f"|{'---|' * (2 + len(columns))}")
    for name, metric in METRICS.items():
        cells = [f"{_score(blind, metric, prior):.2f}"]
        for path in columns.values():
            cells.append(f"{_score(json.loads(path.read_text())['metrics'], metric, path):.2f}")
        print(f"| {name} | {' | '.join(cells)} |")
    print(flush=True)


def report(
    steps: Steps,
    scores: Path,
    prior: Path,
    pictures: Path,
    factors: tuple[float, float],
    others: Mapping[str, Path] | None = None,
) -> None:
    """Print costs and scores; raise StepFailed if the scores are too low.

    Args:
        steps: Records of the steps.
        scores: File of the model's scores.
        prior: File of the prior's.
        pictures: Folder of the pictures.
        factors: Required multiples of the prior's (mIoU, RayIoU).
        others: Files of the scores of other models, by the title of their column.
    """
    model = json.loads(scores.read_text())["metrics"]
    blind = json.loads(prior.read_text())["metrics"]
    data_steps = Steps.load(TOY.steps)
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
    if others:
        report_columns("held-out scenes", prior, {**others, "model": scores})
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
    parser.add_argument("--long", action="store_true", help="make the longer run (make toy-train)")
    parser.add_argument("--config", type=config_file, help="train this config instead")
    parser.add_argument(
        "--from-scratch", action="store_true", help="train from scratch as well, for comparison"
    )
    parser.add_argument(
        "--skip", nargs="+", choices=SKIPPABLE, default=(), metavar="STEP",
        help=f"steps to omit: {', '.join(SKIPPABLE)}",
    )  # fmt: skip

    def run(args: argparse.Namespace) -> None:
        plan = make_plan(
            config=args.config, long=args.long, from_scratch=args.from_scratch, skip=args.skip
        )
        run_demo(plan)

    return run_command(parser, run, arguments)
