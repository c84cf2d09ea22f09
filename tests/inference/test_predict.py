"""Folders of images with a rig file, and scripts/predict.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trimesh
import yaml
from PIL import Image

from loaders.datasets import occupancy_dataset
from loaders.predictions import load_prediction
from models.inference import FrameError
from scripts.inference import command
from scripts.inference.rig_files import read_recording
from tests.inference.conftest import ROOT, SIZE_HW, ToyCase, data_set_predictions

CAMERAS = ("left", "ahead", "right")
RIG: dict[str, Any] = {
    "frame_rate_hz": 2,
    "cameras": {
        name: {
            "intrinsics": [60, 60, 48, 27],
            "translation": [1.0, 0.5 - 0.5 * i, 1.5],
            "rotation": [[0, 0, 1], [-1, 0, 0], [0, -1, 0]] if i == 1 else [0.5, -0.5, 0.5, -0.5],
        }
        for i, name in enumerate(CAMERAS)
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recording of three frames; the camera on the right misses the second."""
    folder = tmp_path / "drive"
    generator = np.random.default_rng(0)
    for name in CAMERAS:
        (folder / name).mkdir(parents=True)
        for i in range(3):
            if (name, i) != ("right", 1):
                pixels = generator.integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{i:06d}.png")
        (folder / name / "notes.txt").write_text("no image")
    write_rig(folder, RIG)
    return folder


def write_rig(folder: Path, content: Any) -> None:
    (folder / "rig.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def test_a_folder_is_read_as_its_rig_file_says(folder: Path) -> None:
    recording = read_recording(folder)
    assert recording.cameras == CAMERAS and recording.name == "drive"
    frames = list(recording)
    assert [frame.name for frame in frames] == ["000000", "000001", "000002"]
    assert [frame.time_s for frame in frames] == [0.0, 0.5, 1.0]
    assert [*frames[1].cameras] == ["left", "ahead"]
    left, ahead = (frames[0].cameras[name] for name in ("left", "ahead"))
    assert left is not None and ahead is not None
    np.testing.assert_array_equal(left.intrinsics, [[60, 0, 48], [0, 60, 27], [0, 0, 1]])
    # The quaternion and the matrix are one rotation: z looks ahead, x to the right.
    np.testing.assert_allclose(left.sensor2ego[:3, :3], ahead.sensor2ego[:3, :3], atol=1e-12)
    np.testing.assert_array_equal(ahead.sensor2ego[:3, 3], [1.0, 0.0, 1.5])


def test_poses_give_time_and_place(folder: Path) -> None:
    poses = {
        f"{i:06d}": {
            "time_s": 9.0 - i,
            "translation": [4.0 * i, 0, 0],
            "rotation": [1, 0, 0, 0],
        }
        for i in range(3)
    }
    lidar = {"translation": [0.9, 0, 1.8], "rotation": [1, 0, 0, 0]}
    write_rig(folder, {**RIG, "poses": poses, "lidar": lidar})
    frames = list(read_recording(folder))
    assert [(frame.name, frame.time_s) for frame in frames] == [
        ("000002", 7.0), ("000001", 8.0), ("000000", 9.0),
    ]  # fmt: skip
    assert frames[0].ego2global[0, 3] == 8.0 and frames[0].lidar2ego[2, 3] == 1.8
    del poses["000001"]
    write_rig(folder, {**RIG, "poses": poses})
    with pytest.raises(FrameError, match="poses lack frame '000001'"):
        read_recording(folder)


def test_other_files_beside_the_images_do_not_matter(folder: Path) -> None:
    (folder / "left" / "000000.txt").write_text("exposure 3 ms")
    files = [frame.cameras["left"] for frame in read_recording(folder)]
    assert [Path(file.image).name for file in files if file] == [f"{i:06d}.png" for i in range(3)]
    (folder / "left" / "000000.jpg").write_bytes(b"")
    with pytest.raises(FrameError, match=r"two files of one frame, .*000000\.jpg, .*000000\.png"):
        read_recording(folder)


def without(key: str) -> dict[str, Any]:
    cameras = {name: dict(part) for name, part in RIG["cameras"].items()}
    del cameras["ahead"][key]
    return {**RIG, "cameras": cameras}


def with_left(**changes: Any) -> dict[str, Any]:
    return {**RIG, "cameras": {"left": {**RIG["cameras"]["left"], **changes}}}


def with_times(*times_s: Any) -> dict[str, Any]:
    pose = {"translation": [0, 0, 0], "rotation": [1, 0, 0, 0]}
    return {**RIG, "poses": {f"{i:06d}": {"time_s": t, **pose} for i, t in enumerate(times_s)}}


BROKEN = {
    "no cameras": ({}, "cameras is None"),
    "misspelt": ({**RIG, "frame_rate": 2}, r"unknown key frame_rate \(did you mean 'frame_rate_hz"),
    "lacking": (without("intrinsics"), r"lacks cameras\.ahead\.intrinsics"),
    "no rotation": (without("rotation"), r"lacks cameras\.ahead\.rotation"),
    "rate": ({**RIG, "frame_rate_hz": 0}, "frame_rate_hz is 0"),
    "a list": ([1, 2], "the file is"),
    "no images": (
        {**RIG, "cameras": {"roof": RIG["cameras"]["left"]}},
        r"cameras\.roof\.images 'roof/\*' matches no image",
    ),
    "no quaternion": (with_left(rotation=[0, 0, 0, 0]), r"cameras\.left: .*not a pose"),
    "ragged": (with_left(intrinsics=[[60, 0], [1]]), r"cameras\.left\.intrinsics are not numbers"),
    "no focal length": (with_left(intrinsics=[0, 60, 48, 27]), r"left\.intrinsics .*above 0"),
    "words": (with_left(intrinsics=["a", "b", "c", "d"]), r"left\.intrinsics are not numbers"),
    "not finite": (with_left(translation=[0, float("nan"), 0]), r"cameras\.left: .*not finite"),
    "pattern": (with_left(images="left/**.png"), r"images 'left/\*\*\.png' "),
    "one time": (with_times(0, 1, 1), r"poses\.000001 and poses\.000002 have the same time_s"),
    "time": (with_times(0, float("nan"), 1), r"poses\.000001\.time_s is nan, expected a finite"),
    "no points": (
        {**RIG, "lidar": {"points": "*.bin", "translation": [0, 0, 0], "rotation": [1, 0, 0, 0]}},
        r"lidar\.points '\*\.bin' matches no file",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_errors_name_the_rig_file_and_the_key(folder: Path, name: str) -> None:
    content, message = BROKEN[name]
    write_rig(folder, content)
    with pytest.raises(FrameError, match=message) as caught:
        read_recording(folder)
    assert "rig.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_rig_file_is_no_program(folder: Path) -> None:
    (folder / "rig.yaml").write_text("cameras: !!python/object/apply:os.getcwd []")
    with pytest.raises(FrameError, match=r"rig\.yaml is not YAML"):
        read_recording(folder)
    (folder / "rig.yaml").unlink()
    with pytest.raises(FrameError, match=r"rig\.yaml does not exist"):
        read_recording(folder)


def arguments(toy_case: ToyCase, *more: object) -> list[str]:
    command = ["--config", toy_case.config, "--weights", toy_case.weights, "--device", "cpu", *more]
    return [str(word) for word in command]


def test_predict_writes_a_file_per_frame(
    toy_case: ToyCase, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for words in (["--format", "npz"], ["--format", "ply", "--mesh"], ["--format", "html"]):
        assert command.main(arguments(toy_case, "--frames", folder, "--out", out, *words)) == 0
    assert "000001  " in (text := capsys.readouterr().out) and "(no image of right)" in text
    names = [f"{i:06d}.{kind}" for i in range(3) for kind in ("npz", "ply")]
    assert sorted(file.name for file in out.iterdir()) == sorted([*names, "drive.html"])
    found = load_prediction(out / "000002.npz", (200, 200, 16), 17)
    mesh = trimesh.load(out / "000002.ply", process=False)
    assert mesh.volume == pytest.approx(0.4**3 * len(found["pred_labels"]), rel=1e-3)
    dense = tmp_path / "dense"
    words = ["--frames", folder, "--out", dense, "--dense", "--num", 1]
    assert command.main(arguments(toy_case, *words)) == 0
    with np.load(dense / "000000.npz") as file:
        assert file["semantics"].shape == (200, 200, 16)
    assert len(list(dense.iterdir())) == 1


def test_predict_of_an_info_file_is_what_val_predicts(
    toy_case: ToyCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = data_set_predictions(toy_case)
    assert command.main(arguments(toy_case, "--frames", toy_case.info_file, "--out", tmp_path)) == 0
    for token, (coords, labels, _) in expected.items():
        found = load_prediction(tmp_path / f"{token}.npz", (200, 200, 16), 17)
        order = np.lexsort(coords.T[::-1])
        np.testing.assert_array_equal(found["pred_coords"], coords[order])
        np.testing.assert_array_equal(found["pred_labels"], labels[order])
    capsys.readouterr()
    words = ["--frames", toy_case.info_file, "--out", tmp_path]
    assert command.main(arguments(toy_case, *words, "--rig", "a.yaml")) == 2
    assert "--rig is an option of a FOLDER" in capsys.readouterr().err
    assert command.main(arguments(toy_case, *words, "--mesh")) == 2
    assert command.main(arguments(toy_case, "--frames", tmp_path / "no", "--out", tmp_path)) == 2
    assert "rig.yaml" in capsys.readouterr().err


def test_packed_images_are_refused(
    toy_case: ToyCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packed = SimpleNamespace(check=lambda *sizes: None)
    monkeypatch.setattr(occupancy_dataset, "read_packed_index", lambda root: packed)
    assert command.main(arguments(toy_case, "--frames", toy_case.info_file, "--out", tmp_path)) == 2
    assert "in a data root of packed images" in capsys.readouterr().err


def test_the_example_of_ones_own_rig(
    toy_case: ToyCase, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "examples" / "own_camera_rig.py"
    spec = importlib.util.spec_from_file_location("own_camera_rig", path)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    out = tmp_path / "out"
    example.main([str(toy_case.config), str(toy_case.weights), str(folder), "--out", str(out)])
    assert (out / "drive.html").stat().st_size > 100_000
    with np.load(out / "000002.npz") as file:
        assert len(file["coords"]) > 0


def test_the_first_lines_of_the_guide_run(
    toy_case: ToyCase, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    code = (ROOT / "docs" / "inference.md").read_text().split("```python\n", 1)[1].split("```")[0]
    assert 'read_recording("drive")' in code and len(code.splitlines()) <= 10
    exec(code, {"CONFIG": str(toy_case.config), "WEIGHTS": str(toy_case.weights)})
    with Image.open("last.png") as picture, np.load("last.npz") as voxels:
        assert picture.width > 500 and len(voxels["coords"]) > 0
    assert Path("drive.html").stat().st_size > 100_000
