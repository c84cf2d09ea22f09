"""The steps of the toy runs: make data, train, score, draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.toy_runs.steps import ROOT, StepFailed, Steps, config_key, hash_of, source_key


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
# Again other scenes, to compare recipes: 80 for training and 20 for validation.
RECIPES = ToyData(
    Path("data/toy_recipes"),
    "v1.0-trainval",
    ("--scenes", "100", "--samples", "2", "--seed", "5000"),
)
DATA_SETS = {"toy": TOY, "pretrain": PRETRAIN, "recipes": RECIPES}
# Sources that scores and pictures depend on, in addition to config and checkpoint.
SCORING_SOURCE = ("models", "loaders", "scripts", "val.py", "visualize.py")


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
        hash_of(table_key, source_key(["scripts/gen_sweep_info.py", "scripts/sweep_infos"])),
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
    key = hash_of(config_key(config), data_key, *given, *options)
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
    steps.run("training", command + cfg_options(options), key, [pointer])
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
    key = hash_of(config_key(config), weights.read_bytes(), source_key(SCORING_SOURCE))
    steps.run(name, command + cfg_options(options), key, [out])
    return out


def score_prior(
    steps: Steps, config: str, data_key: str, work_dir: Path, options: Sequence[str] = ()
) -> Path:
    """Score the image-blind prior as `score_model` scores a checkpoint."""
    name = "-".join(["prior", *options])
    out = work_dir / f"{name}.json"
    command = [str(ROOT / "scripts/evaluate_prior.py"), "--config", config, "--out", str(out)]
    key = hash_of(config_key(config), data_key, source_key(SCORING_SOURCE))
    steps.run(name, command + cfg_options(options), key, [out])
    return out


def draw_pictures(
    steps: Steps, config: str, weights: Path, out: Path, options: Sequence[str] = ()
) -> None:
    """Draw predictions for the held-out scenes next to images and ground truth."""
    command = [str(ROOT / "visualize.py"), "--config", config, "--weights", str(weights)]
    command += ["--vis-input", "--vis-gt", "--out", str(out)]
    key = hash_of(config_key(config), weights.read_bytes(), source_key(SCORING_SOURCE))
    steps.run("pictures", command + cfg_options(options), key, [out])


def cfg_options(options: Sequence[str]) -> list[str]:
    """Return overrides of a config as arguments of a command."""
    return ["--cfg-options", *options] if options else []
