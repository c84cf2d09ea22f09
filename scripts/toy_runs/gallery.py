"""Make the pictures of docs/gallery.md from the toy data and a model trained on it.

    python scripts/make_gallery.py                          # `make gallery`
    python scripts/make_gallery.py --only sheet points --weights work_dirs/X/epoch_14.pth

Each picture is one call of visualize.py or scripts/plot_log.py, and the command is printed. The
model is that of `make toy-train` or else of `make demo`; for the picture `demo` it is the reverse.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from scripts.runtime.command_line import CommandParser, config_file, run_command
from scripts.runtime.errors import ConfigError
from scripts.toy_runs.demo import (
    DEMO_CONFIG,
    FINE_TUNING_CONFIG,
    LONG_CONFIG,
    LONG_PRETRAINED_CONFIG,
)
from scripts.toy_runs.model_steps import make_data
from scripts.visualization import command, training_curves
from scripts.visualization.chromium import open_browser
from scripts.visualization.rerun_viewer import open_viewer, serve_recording, wait_for_colour

_OF_DEMO = (FINE_TUNING_CONFIG, DEMO_CONFIG)
_OF_TOY_TRAIN = (LONG_PRETRAINED_CONFIG, LONG_CONFIG)
LONGEST_FIRST = (*_OF_TOY_TRAIN, *_OF_DEMO)
DEMO_FIRST = (*_OF_DEMO, *_OF_TOY_TRAIN)

INDEX = "9"
"""The sample in most pictures: a street of the second held-out scene."""


@dataclass(frozen=True)
class Picture:
    """One picture of the gallery.

    Attributes:
        name: Name of the file in docs/images, without suffix.
        arguments: Arguments of visualize.py in addition to config, weights and folder.
        result: Pattern of the output file to use.
        columns: Width of the picture in the gallery.
        models: Configs of the toy data; the model is that of the first one that has been trained.
    """

    name: str
    arguments: str
    result: str = "0*_????????.png"
    columns: int = 1400
    models: tuple[str, ...] = LONGEST_FIRST


_ROAD = (0, 207, 191)
"""Colour of driveable surface, which every sample shows."""
_MODEL = f"--vis-gt --index {INDEX}"
PICTURES = (
    Picture("demo", "--vis-input --vis-gt --index 2", columns=1600, models=DEMO_FIRST),
    Picture("sheet", f"--vis-input {_MODEL}"),
    Picture("overlay", f"--vis-overlay {_MODEL}"),
    Picture("points", f"--vis-points {_MODEL}", "*_points.png"),
    Picture("safe", f"--vis-input --palette safe --theme dark {_MODEL}"),
    Picture("front", f"--view front {_MODEL}", "0*_front.png"),
    Picture("overview", "--vis-input --vis-gt --num 6", "overview.png", 1000),
    Picture(
        "film",
        "--scene scene-0916 --format gif --fps 3 --view orbit --scale 0.36",
        "*.gif",
    ),
    Picture("scene", "--vis-gt --index 8 9 10 --format html", "*.html"),
)


def find_model(
    config: str | None, weights: str | None, models: Sequence[str] = LONGEST_FIRST
) -> tuple[str, str]:
    """Return the config and checkpoint of the pictures' model: those given, or of `models`.

    Raises:
        ConfigError: One is given without the other, or no toy model has been trained.
    """
    if (config is None) != (weights is None):
        raise ConfigError("--config and --weights belong together: give both or neither")
    if config is not None and weights is not None:
        return config, weights
    for candidate in models:
        pointer = Path("work_dirs", Path(candidate).stem, "last_checkpoint")
        if pointer.is_file() and Path(pointer.read_text().strip()).is_file():
            return candidate, pointer.read_text().strip()
    raise ConfigError(
        "no toy model has been trained: run `make demo` first, or give --config and --weights"
    )


def _check(code: int, command: str) -> None:
    if code:
        raise ConfigError(f"`{command}` failed with exit code {code}, see above")


def make_picture(picture: Picture, config: str, weights: str, out: Path) -> Path:
    """Draw one picture, reduce it and copy it to the gallery."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--config", config, "--weights", weights, *picture.arguments.split()]
        command_line = shlex.join(["visualize.py", *arguments])
        print(f"== {picture.name}: python {command_line}", flush=True)
        _check(command.main([*arguments, "--out", folder]), command_line)
        found = sorted(Path(folder).rglob(picture.result))
        if len(found) != 1:
            raise ConfigError(
                f"`{command_line}` wrote {len(found)} files {picture.result}, expected 1"
            )
        if found[0].suffix in (".gif", ".html"):
            target = out / f"{picture.name}{found[0].suffix}"
            target.write_bytes(found[0].read_bytes())
            return target
        with Image.open(found[0]) as file:
            return _save_small(file.convert("RGB"), out / f"{picture.name}.jpg", picture.columns)


def _save_small(image: Image.Image, path: Path, columns: int) -> Path:
    """Save a JPEG file without chroma subsampling.

    For sheets with photographs it has a third of the size of a PNG.
    """
    if image.width > columns:
        rows = round(image.height * columns / image.width)
        image = image.resize((columns, rows), Image.Resampling.LANCZOS)
    image.save(path, quality=86, subsampling=0, optimize=True)
    return path


def make_page(config: str, weights: str, out: Path) -> Path:
    """Save a screenshot of a page in a browser.

    Raises:
        ConfigError: Chromium is not installed.
    """
    arguments = ["--config", config, "--weights", weights, "--vis-input", "--vis-gt"]
    arguments += ["--scene", "scene-0916", "--format", "html"]
    command_line = shlex.join(["visualize.py", *arguments])
    print(f"== page: python {command_line}", flush=True)
    with open_browser() as browser, tempfile.TemporaryDirectory() as folder:
        _check(command.main([*arguments, "--out", folder]), command_line)
        page = browser.new_page(
            viewport={"width": 1400, "height": 860}, reduced_motion="reduce", offline=True
        )
        page.goto(Path(folder, "scene-0916.html").as_uri())
        page.wait_for_selector("body[data-ready]")
        for key in ("ArrowRight", "o"):
            page.keyboard.press(key)
        page.wait_for_timeout(3000)
        picture = Path(folder, "page.png")
        page.screenshot(path=str(picture))
        with Image.open(picture) as file:
            return _save_small(file.convert("RGB"), out / "page.jpg", 1400)


def make_recording(config: str, weights: str, out: Path) -> Path:
    """Save a screenshot of a recording in Rerun's viewer.

    Raises:
        ConfigError: Chromium or Rerun's viewer is not installed, or does not draw.
    """
    arguments = ["--config", config, "--weights", weights, "--vis-input", "--vis-gt"]
    arguments += ["--vis-points", "--scene", "scene-0916", "--format", "rrd"]
    command_line = shlex.join(["visualize.py", *arguments])
    print(f"== recording: python {command_line}", flush=True)
    with open_browser() as browser, tempfile.TemporaryDirectory() as folder:
        _check(command.main([*arguments, "--out", folder]), command_line)
        with serve_recording(Path(folder, "scene-0916.rrd"), Path(folder)) as address:
            page = open_viewer(browser, address, 1600, 1000)
            picture = wait_for_colour(page, _ROAD, 0.01)
    return _save_small(picture, out / "recording.jpg", 1400)


def make_curves(work_dir: Path, out: Path) -> Path:
    """Save the curves of the model's training."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "curves.png")
        print(f"== curves: python scripts/plot_log.py {work_dir}", flush=True)
        _check(training_curves.main([str(work_dir), "--out", str(picture)]), "plot_log.py")
        with Image.open(picture) as file:
            # Few colours: a PNG with a palette is smaller and sharper than a JPEG.
            small = file.convert("RGB").resize(
                (1200, round(1200 * file.height / file.width)), Image.Resampling.LANCZOS
            )
    small.quantize(64).save(out / "curves.png", optimize=True)
    return out / "curves.png"


def make_gallery(names: Sequence[str], config: str | None, weights: str | None, out: Path) -> None:
    """Make the pictures with the given names.

    Raises:
        ConfigError: There is no model to draw, or a picture could not be drawn.
    """

    def draw(picture: Picture) -> Path:
        return make_picture(picture, *find_model(config, weights, picture.models), out)

    makers: dict[str, Callable[[], Path]] = {
        picture.name: partial(draw, picture) for picture in PICTURES
    }
    makers["page"] = lambda: make_page(*find_model(config, weights), out)
    makers["recording"] = lambda: make_recording(*find_model(config, weights), out)
    makers["curves"] = lambda: make_curves(Path(find_model(config, weights)[1]).parent, out)
    out.mkdir(parents=True, exist_ok=True)
    for name in names or makers:
        path = makers[name]()
        print(f"   {path}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    known = [*(picture.name for picture in PICTURES), "page", "recording", "curves"]
    parser.add_argument("--only", nargs="+", choices=known, default=(), help="only these pictures")
    parser.add_argument("--config", type=config_file, help="config of the model, with --weights")
    parser.add_argument("--weights", metavar="CHECKPOINT")
    parser.add_argument("--out", type=Path, default=Path("docs", "images"), metavar="FOLDER")

    def run(args: argparse.Namespace) -> None:
        if (args.config is None) != (args.weights is None):
            raise ConfigError("--config and --weights belong together: give both or neither")
        if args.weights is None:
            make_data()
        make_gallery(args.only, args.config, args.weights, args.out)

    return run_command(parser, run, arguments)
