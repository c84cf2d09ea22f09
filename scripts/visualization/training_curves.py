"""Draw loss and metric curves of one or several trainings into one PNG.

    python scripts/plot_log.py work_dirs/A work_dirs/B --out outputs/curves.png

Reads the scalars that mmengine writes next to TensorBoard's (`<run>/vis_data/scalars.json`). A
training that was stopped and resumed is one curve: if two runs of a work dir logged the same steps,
the later one is used, since the last checkpoint comes from it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.errors import does_not_exist
from scripts.runtime.atomic_write import check_file_target, write_atomically
from scripts.runtime.command_line import CommandParser, run_command
from scripts.runtime.errors import ConfigError

Points = list[tuple[float, float]]
SCALARS = "vis_data/scalars.json"
# Blue, vermilion, green, purple, orange, sky, black of Okabe and Ito's set, which readers with
# common colour vision deficiencies can distinguish.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# Line styles of the decoder layers before the last one, from the first on.
LAYER_STYLES: tuple[Any, ...] = (":", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1)))
START, LAST, MEAN = "start", "last layer", "mean"
# Scores of single classes, and times, are logged but not drawn.
_NOT_DRAWN = re.compile(r"(^|/)IoU_|(^|/)(data_)?time$")
_LAYER = re.compile(r"(?:d(?P<layer>\d+)\.|(?P<init>init)_)?(?P<kind>loss.*)")


@dataclass
class RunLog:
    """Curves of one training.

    Attributes:
        name: Name in the legend.
        losses: Name of a loss to points (iteration, value).
        metrics: Name of a score to points (epoch, value).
    """

    name: str
    losses: dict[str, Points] = field(default_factory=lambda: defaultdict(list))
    metrics: dict[str, Points] = field(default_factory=lambda: defaultdict(list))


def read_run(folder: Path, name: str) -> RunLog:
    """Read and join the logs of a work dir.

    Args:
        folder: The `--work-dir` of train.py, or one run in it.
        name: Name in the legend.

    Raises:
        ConfigError: The folder does not exist or holds no logged training, or a log is damaged.
    """
    if not folder.is_dir():
        fault = f"{folder} is a file" if folder.exists() else does_not_exist(folder)
        raise ConfigError(f"{fault}: pass the work dir of a training")
    # mmengine names the folders of a work dir by their start time.
    files = sorted(folder.glob(f"*/{SCALARS}")) or sorted(folder.glob(SCALARS))
    log = RunLog(name)
    for file in files:
        _join(log, _read_lines(file))
    if not log.losses and not log.metrics:
        raise ConfigError(
            f"{folder} holds no log of a training ({SCALARS}): pass the work dir of train.py"
        )
    return log


def _read_lines(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text().splitlines()
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break  # the training is running, or was killed while writing
            raise ConfigError(f"{file} is damaged in line {number}: {error}") from None
    return entries


def _join(log: RunLog, entries: Sequence[Mapping[str, Any]]) -> None:
    """Append a run's entries, and remove earlier entries that they replace."""
    training = [entry for entry in entries if "loss" in entry]
    if training:
        first_iter = min(entry["step"] for entry in training)
        first_epoch = min(entry.get("epoch", 0) for entry in training)
        for curves, first in ((log.losses, first_iter), (log.metrics, first_epoch)):
            for points in curves.values():
                points[:] = [point for point in points if point[0] < first]
    for entry in entries:
        is_training = "loss" in entry
        curves = log.losses if is_training else log.metrics
        for key, value in entry.items():
            drawn = "loss" in key if is_training else "step" != key and not _NOT_DRAWN.search(key)
            if drawn and isinstance(value, (int, float)):
                curves[key].append((float(entry["step"]), float(value)))


@dataclass
class Panel:
    """One pair of axes.

    Attributes:
        title: Its contents.
        x_label: Unit of the horizontal axis.
        curves: (index of the run, name of the line within the panel, points).
    """

    title: str
    x_label: str
    curves: list[tuple[int, str, Points]]


def panels_of(runs: Sequence[RunLog]) -> list[Panel]:
    """Sort curves into panels: the total loss, each kind of loss by layer, each score."""
    panels: dict[str, Panel] = {}

    def add(title: str, x_label: str, curve: tuple[int, str, Points]) -> None:
        panels.setdefault(title, Panel(title, x_label, [])).curves.append(curve)

    for number, run in enumerate(runs):
        for key in sorted(run.losses, key=lambda key: (key != "loss", key)):
            kind, line = _loss_line(key)
            add(kind, "iteration", (number, line, run.losses[key]))
    for number, run in enumerate(runs):
        for key in run.metrics:
            title, _, threshold = key.partition("@")
            line = f"at {threshold} m" if threshold else MEAN
            add(title, "epoch", (number, line, run.metrics[key]))
    for panel in panels.values():
        panel.curves.sort(key=lambda curve: (curve[0], _line_order(curve[1])))
    return list(panels.values())


def _loss_line(key: str) -> tuple[str, str]:
    """Return the kind and layer of a loss: `d0.loss_cls` -> loss_cls, layer 1."""
    match = _LAYER.fullmatch(key)
    if match is None or key == "loss":
        return key, LAST
    if match["init"]:
        return match["kind"], START
    return match["kind"], LAST if match["layer"] is None else f"layer {int(match['layer']) + 1}"


def _line_order(line: str) -> tuple[int, str]:
    return ({START: 0, LAST: 2, MEAN: 2}.get(line, 1), line)


def draw(runs: Sequence[RunLog], out: Path) -> None:
    """Draw the picture and write it.

    Args:
        runs: At least one, with at least one curve.
        out: PNG file.
    """
    from matplotlib.figure import Figure

    panels = panels_of(runs)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        _draw_panel(ax, panel)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    handles = [
        figure.axes[0].plot([], [], color=COLOURS[i % len(COLOURS)], lw=2.5, label=run.name)[0]
        for i, run in enumerate(runs)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, fontsize=11)
    write_atomically(out, lambda path: figure.savefig(path, dpi=130, format="png"))


def _draw_panel(ax: Any, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    lines = sorted({line for _, line, _ in panel.curves}, key=_line_order)
    for number, line, points in panel.curves:
        x, y = zip(*points, strict=True)
        rank = lines.index(line) if len(lines) > 1 and line not in (LAST, MEAN) else None
        few = len(points) < 30 and panel.x_label == "epoch"
        ax.plot(
            x,
            y,
            color=COLOURS[number % len(COLOURS)],
            linestyle="-" if rank is None else LAYER_STYLES[rank % len(LAYER_STYLES)],
            linewidth=1.9 if rank is None else 1.2,
            alpha=1.0 if rank is None else 0.75,
            marker="o" if few else None,
            markersize=4.5 if rank is None else 3,
        )
    if len(lines) > 1:
        drawn = {line: shown for (_, line, _), shown in zip(panel.curves, ax.lines, strict=True)}
        legend = ax.legend([drawn[line] for line in lines], lines, fontsize=8, frameon=False)
        for handle in legend.get_lines():
            handle.set_color("#444444")
    ax.set_title(panel.title, loc="left", fontsize=11, fontweight="bold")
    ax.set_xlabel(panel.x_label, fontsize=9)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    ax.tick_params(labelsize=8)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def run_names(folders: Sequence[Path]) -> list[str]:
    """Return names that distinguish work dirs: the last component, or the whole path if needed.

    Raises:
        ConfigError: A folder is passed twice.
    """
    resolved = [folder.resolve() for folder in folders]
    for i, folder in enumerate(resolved):
        if folder in resolved[:i]:
            raise ConfigError(f"{folders[i]} is passed twice: pass each work dir once")
    last = [folder.name for folder in resolved]
    return [
        name if last.count(name) == 1 else str(folder)
        for name, folder in zip(last, folders, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument("work_dirs", nargs="+", type=Path, metavar="WORK_DIR")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/curves.png"),
        metavar="FILE",
        help="the PNG file (default: outputs/curves.png)",
    )

    def run(args: argparse.Namespace) -> None:
        check_file_target("--out", args.out)
        names = run_names(args.work_dirs)
        draw([read_run(*pair) for pair in zip(args.work_dirs, names, strict=True)], args.out)
        print(args.out)

    return run_command(parser, run, arguments)
