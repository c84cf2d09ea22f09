from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.visualization import training_curves
from scripts.visualization.training_curves import main, panels_of, read_run


def train_line(step: int, epoch: int, value: float) -> dict:
    return {
        "lr": 0.1, "loss": value, "init_loss_pts": 4 * value, "d0.loss_cls": 3 * value,
        "loss_cls": 2 * value, "img.loss_depth": 9.0, "grad_norm": 5.0, "time": 0.5,
        "epoch": epoch, "iter": step, "step": step,
    }  # fmt: skip


def val_line(epoch: int, value: float) -> dict:
    return {
        "occ3d/mIoU": value, "occ3d/IoU_car": 1.0, "ray/RayIoU": value / 2,
        "ray/RayIoU@1": value / 4, "data_time": 0.1, "time": 0.5, "step": epoch,
    }  # fmt: skip


def write(folder: Path, started: str, entries: list[dict], tail: str = "") -> Path:
    path = folder / started / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + tail)
    return path


@pytest.fixture
def stopped_and_resumed(tmp_path) -> Path:
    """Write logs of a run that stopped after iteration 30 and resumed at iteration 20."""
    folder = tmp_path / "base"
    write(
        folder,
        "20260101_100000",
        [
            train_line(10, 1, 9.0),
            train_line(20, 2, 8.0),
            val_line(2, 10.0),
            train_line(30, 3, 99.0),
        ],
    )
    write(
        folder,
        "20260101_110000",
        [train_line(30, 3, 7.0), train_line(40, 4, 6.0), val_line(4, 20.0)],
        tail='{"loss": 5.',
    )
    (folder / "20260101_120000").mkdir()  # val.py makes one without a log of scalars
    return folder


def test_resumed_training_is_one_curve(stopped_and_resumed):
    log = read_run(stopped_and_resumed, "base")
    assert log.losses["loss"] == [(10, 9.0), (20, 8.0), (30, 7.0), (40, 6.0)]
    assert log.metrics["occ3d/mIoU"] == [(2, 10.0), (4, 20.0)]
    assert set(log.losses) == {"loss", "init_loss_pts", "d0.loss_cls", "loss_cls", "img.loss_depth"}
    assert set(log.metrics) == {"occ3d/mIoU", "ray/RayIoU", "ray/RayIoU@1"}
    one_run = read_run(stopped_and_resumed / "20260101_110000", "one")
    assert one_run.losses["loss"] == [(30, 7.0), (40, 6.0)]


def test_panels_are_kinds_and_lines_are_layers(stopped_and_resumed):
    panels = {panel.title: panel for panel in panels_of([read_run(stopped_and_resumed, "a")] * 2)}
    lines = {title: [(run, line) for run, line, _ in p.curves] for title, p in panels.items()}
    assert lines["loss_cls"] == [
        (0, "layer 1"),
        (0, "last layer"),
        (1, "layer 1"),
        (1, "last layer"),
    ]
    assert lines["loss_pts"] == [(0, "start"), (1, "start")]
    assert lines["ray/RayIoU"][:2] == [(0, "at 1 m"), (0, "mean")]
    order = ["loss", "loss_cls", "img.loss_depth", "loss_pts", "occ3d/mIoU", "ray/RayIoU"]
    assert list(lines) == order


def test_picture_has_a_colour_for_each_run(stopped_and_resumed, tmp_path, capsys):
    other = tmp_path / "other"
    write(other, "20260102_100000", [train_line(10, 1, 5.0), train_line(40, 4, 2.0)])
    out = tmp_path / "new" / "curves.png"
    assert main([str(stopped_and_resumed), str(other), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    image = np.asarray(Image.open(out).convert("RGB")).astype(int)
    for hexadecimal in training_curves.COLOURS[:2]:
        colour = [int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(image - colour).max(axis=-1) < 40).sum() > 300
    unused = [int(training_curves.COLOURS[2][i : i + 2], 16) for i in (1, 3, 5)]
    assert (np.abs(image - unused).max(axis=-1) < 40).sum() == 0


def test_user_errors_end_in_one_sentence(stopped_and_resumed, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    write(broken, "20260101_100000", [train_line(10, 1, 9.0)]).write_text('{"lo\n{"loss": 1.0}\n')
    for folders, words in (
        ([tmp_path / "none"], ["none", "does not exist"]),
        ([tmp_path / "empty"], ["empty", "no log of a training", "train.py"]),
        ([broken], ["scalars.json", "damaged in line 1"]),
        ([stopped_and_resumed, stopped_and_resumed / "."], ["passed twice"]),
    ):
        assert main([*map(str, folders), "--out", str(tmp_path / "x.png")]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and all(word in lines[0] for word in words), lines
    assert not (tmp_path / "x.png").exists()
