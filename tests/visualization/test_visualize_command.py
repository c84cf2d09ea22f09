from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visualize import main

ROOT = Path(__file__).resolve().parents[2]
SCALE = ["--scale", "0.4"]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def share_of(image: np.ndarray, colour: tuple[int, int, int], tolerance: int = 24) -> float:
    return float((np.abs(image - np.array(colour)).max(axis=-1) <= tolerance).mean())


def run(config: Path, out: Path, *more: str) -> int:
    return main(["--config", str(config), "--out", str(out), *SCALE, *more])


def test_ground_truth_alone_needs_no_weights(config, tmp_path):
    out = tmp_path / "pictures"
    assert run(config, out, "--vis-gt") == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "00000_scene-0916_00000000.png",
        "00001_scene-0916_00000000.png",
        "overview.png",
    ]
    for name in names:
        image = pixels(out / name)
        assert share_of(image, (0, 207, 191)) > 0.05, f"{name} shows no road"
        assert share_of(image, (255, 158, 0)) > 0.001, f"{name} shows no car"


def test_prediction_alone(config, weights, tmp_path):
    out = tmp_path / "pictures"
    assert run(config, out, "--weights", str(weights), "--index", "1") == 0
    (sheet,) = (path for path in out.iterdir() if path.name != "overview.png")
    assert sheet.name.startswith("00001_")
    image = pixels(sheet)
    # The model misses the car, so its colour is left in the legend only.
    panel = image[: int(0.85 * len(image))]
    assert share_of(panel, (0, 207, 191)) > 0.05
    assert share_of(panel, (255, 158, 0), 10) == 0


def test_samples_of_wrapped_data_sets(config, weights, tmp_path):
    """Indices count through all data sets; a repeated sample has the same picture."""
    wrapped = tmp_path / "wrapped.py"
    wrapped.write_text(
        config.read_text()
        + """
part = {**test_dataloader.pop('dataset'), 'on_error': 'skip'}
test_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[
    {**part, 'indices': [1]}, dict(type='RepeatDataset', dataset=part, times=2)])
"""
    )
    out = tmp_path / "pictures"
    arguments = ["--weights", str(weights), "--vis-gt", "--index", "0", "2", "4"]
    assert run(wrapped, out, *arguments, "--vis-input") == 0
    names = sorted(path.name for path in out.iterdir() if path.name != "overview.png")
    assert [name[:5] for name in names] == ["00000", "00002", "00004"]
    first, second, third = (pixels(out / name) for name in names)
    body = slice(int(0.2 * len(first)), None)  # below the title, which shows the index
    assert (first[body] == second[body]).all() and (second[body] == third[body]).all()


def test_everything_side_by_side(config, weights, tmp_path):
    out = tmp_path / "pictures"
    arguments = ["--weights", str(weights), "--vis-input", "--vis-gt", "--index", "0"]
    assert run(config, out, *arguments) == 0
    sheet = pixels(next(path for path in out.iterdir() if path.name != "overview.png"))
    width = sheet.shape[1]
    panels = sheet[int(0.35 * len(sheet)) : int(0.88 * len(sheet))]
    prediction, truth, difference = (
        panels[:, i * width // 3 : (i + 1) * width // 3] for i in range(3)
    )
    assert share_of(truth, (255, 158, 0)) > 0.002
    assert share_of(prediction, (255, 158, 0), 10) == 0
    assert share_of(difference, (0, 114, 190), 70) > 0.004, "the missed car is not marked"
    assert share_of(difference, (213, 74, 20), 70) > 0.002, "the invented tower is not marked"
    assert share_of(truth, (0, 114, 190), 10) == 0


def test_pictures_are_reproducible(config, weights, tmp_path):
    arguments = ["--weights", str(weights), "--vis-gt", "--vis-input", "--index", "0"]
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            assert run(config, tmp_path / f"out{number}", *arguments) == 0
    finally:
        torch.set_num_threads(threads)
    for path in (tmp_path / "out1").iterdir():
        assert path.read_bytes() == (tmp_path / "out2" / path.name).read_bytes(), path.name


def _text_weights(folder: Path) -> list[str]:
    path = folder / "text.pth"
    path.write_text("not weights")
    return ["--weights", str(path)]


def _other_model(folder: Path) -> list[str]:
    path = folder / "other.pth"
    torch.save({"state_dict": {"backbone.weight": torch.zeros(2)}}, path)
    return ["--weights", str(path)]


def _no_labels(folder: Path) -> list[str]:
    config = folder / "tiny-street.py"
    config.write_text(config.read_text().replace("dict(type='LoadOcc3DLabels'),", ""))
    return ["--vis-gt"]


def _broken_image(folder: Path) -> list[str]:
    # The last sample's images are not read before they are drawn.
    path = folder / "samples" / "CAM_BACK" / "0.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return ["--vis-gt", "--vis-input"]


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: ["--weights", str(folder / "none.pth")], ["none.pth", "does not exist"]),
        (_text_weights, ["text.pth", "not a PyTorch checkpoint"]),
        (_other_model, ["other.pth", "another model", "backbone.weight"]),
        (lambda folder: [], ["--weights", "--vis-gt"]),
        (lambda folder: ["--vis-gt", "--index", "2"], ["--index 2", "0 to 1"]),
        (lambda folder: ["--vis-gt", "--num", "0"], ["--num: '0' is not a whole number from 1"]),
        (lambda folder: ["--vis-gt", "--scale", "99"], ["scale 99"]),
        (lambda folder: ["--vis-gt", "--vis-points"], ["--vis-points", "--weights"]),
        (_no_labels, ["LoadOcc3DLabels"]),
        (_broken_image, ["CAM_BACK/0.jpg"]),
        (
            lambda folder: ["--vis-gt", "--cfg-options", "test_dataloader.dataset.speed=3"],
            ["test_dataloader.dataset", "speed"],
        ),
    ],
    ids=[
        "missing weights",
        "not a checkpoint",
        "another model",
        "nothing to draw",
        "index",
        "num",
        "scale",
        "points of no model",
        "no labels",
        "broken image",
        "unknown key",
    ],
)
def test_user_errors_end_in_one_sentence(prepare, words, config, tmp_path, capsys):
    arguments = prepare(tmp_path)
    command = ["--config", str(config), "--out", str(tmp_path / "out"), "--scale", "0.4"]
    assert main([*command, *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0], lines[0]


def test_command_runs_without_a_display(config, tmp_path):
    out = tmp_path / "pictures"
    # The model of these tests is registered only in this process.
    child = tmp_path / "child.py"
    child.write_text(f"_base_ = {str(config)!r}\nmodel = None\n")
    command = [sys.executable, "visualize.py", "--config", str(child), "--vis-gt", "--vis-input"]
    result = subprocess.run(
        [*command, "--out", str(out), "--index", "0", *SCALE],
        cwd=ROOT,
        env={"PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr
    assert "overview" in result.stdout
    assert len(list(out.glob("*.png"))) == 2
