"""Other recordings in nuScenes' format: scenes, splits, channels, folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.errors import BadDataError
from loaders.info_io import CAMERAS, load_infos
from scripts.sweep_infos.generator import main

# Scenes of the mini data set and their key frames.
SAMPLES = {"scene-0061": 4, "scene-0553": 2, "scene-0103": 3}


class Recording:
    """Copy the mini data set so that its tables can be changed; sensor files are linked."""

    def __init__(self, mini, root: Path, version: str = "v1.0-mini") -> None:
        self.root, self.version = root, version
        shutil.copytree(mini.root / "v1.0-mini", root / version)
        for name in ("samples", "sweeps"):
            (root / name).symlink_to(mini.root / name)

    def edit(self, table, change):
        path = self.root / self.version / f"{table}.json"
        records = json.loads(path.read_text())
        for record in records:
            change(record)
        path.write_text(json.dumps(records))

    def rename_scenes(self, names):
        old = list(SAMPLES)

        def rename(scene):
            scene["name"] = names[old.index(scene["name"])]

        self.edit("scene", rename)

    def generate(self, *arguments):
        words = ["--data-root", str(self.root), "--version", self.version, "--workers", "0"]
        return main([*words, "--no-progress", *arguments])

    def files(self):
        """Return the samples of each info file."""
        return {path.name: len(load_infos(path).infos) for path in sorted(self.root.glob("*.pkl"))}


def build(root, file, **changes):
    cfg = dict(
        type="NuScenesOcc3DDataset",
        data_root=str(root),
        ann_file=file,
        num_frames=2,
        test_mode=True,
        pipeline=[],
    )
    return DATASETS.build({**cfg, **changes})


@pytest.fixture
def recording(mini, tmp_path):
    return Recording(mini, tmp_path)


def test_renamed_scenes_are_refused_before_anything_is_written(recording, capsys):
    recording.rename_scenes(["yard-1", "yard-2", "night-1"])
    assert recording.generate() == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "yard-1, yard-2, night-1" in error and "--split NAME SCENE" in error
    assert recording.files() == {}


def test_scenes_in_no_split_are_named(recording, capsys):
    recording.rename_scenes(["scene-0061", "yard-2", "scene-0103"])
    assert recording.generate() == 0
    error = capsys.readouterr().err
    assert "1 of 3 scenes are in no split and are left out (yard-2)" in error
    assert recording.files() == {
        "nuscenes_infos_train_mini_sweep.pkl": 4, "nuscenes_infos_val_mini_sweep.pkl": 3,
    }  # fmt: skip


@pytest.mark.parametrize("place", ["version", "root", "option", "lists"])
def test_own_splits_of_an_own_version(mini, tmp_path, place):
    recording = Recording(mini, tmp_path, "yard-2026")
    recording.rename_scenes(["yard-1", "yard-2", "night-1"])
    splits = {"train": ["yard-1", "night-1"], "val": ["yard-2"]}
    arguments = []
    if place == "lists":
        arguments = ["--split", "train", "yard-1", "night-*", "--split", "val", "yard-2"]
    else:
        folder = {"version": tmp_path / "yard-2026", "root": tmp_path, "option": tmp_path / "x"}
        folder[place].mkdir(exist_ok=True)
        (folder[place] / "splits.json").write_text(json.dumps(splits))
        arguments = ["--splits", str(tmp_path / "x/splits.json")] if place == "option" else []
    assert recording.generate(*arguments) == 0
    assert recording.files() == {
        "nuscenes_infos_train_yard-2026_sweep.pkl": 7, "nuscenes_infos_val_yard-2026_sweep.pkl": 2,
    }  # fmt: skip
    dataset = build(recording.root, None, version="yard-2026", split="val")
    assert len(dataset) == 2 and dataset.get_sample(0).scene_name == "yard-2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "train"], "--split train has no scene"),
        (["--split", "train", "scene-0062"], "no scene scene-0062: choose.*scene-0061"),
        (["--split", "a/b", "scene-0061"], "'a/b' is not the name of a split"),
        (["--version", "v1.0-yard"], "v1.0-yard does not exist: .*v1.0-mini"),
        (["--version", "../x"], "is not the name of a folder"),
        (["--splits", "nowhere.json"], "nowhere.json does not exist"),
        (["--cameras", "CAM_TOP"], "no calibrated camera CAM_TOP: set --cameras to .*CAM_FRONT"),
        (["--lidar", "LIDAR_LEFT"], "no calibrated lidar LIDAR_LEFT: .*LIDAR_TOP"),
    ],
)
def test_wrong_options_end_in_one_sentence(recording, capsys, arguments, message):
    assert recording.generate(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)
    assert recording.files() == {}


@pytest.mark.parametrize("content", ["[", "[]", "{}", '{"train": "a"}', '{"train": [1]}'])
def test_broken_splits(recording, capsys, content):
    (recording.root / "splits.json").write_text(content)
    assert recording.generate() == 2
    assert "splits.json" in capsys.readouterr().err
    assert recording.files() == {}


def test_a_piece_of_nuscenes(recording, capsys):
    """One scene of one split, without the tables that infos do not need."""
    folder = recording.root / "v1.0-mini"
    for name in ("map", "log", "sample_annotation", "instance", "category"):
        (folder / f"{name}.json").unlink()
    scenes = [s for s in json.loads((folder / "scene.json").read_text()) if "0553" in s["name"]]
    samples = [
        s
        for s in json.loads((folder / "sample.json").read_text())
        if s["scene_token"] == scenes[0]["token"]
    ]
    tokens = {sample["token"] for sample in samples}
    data = json.loads((folder / "sample_data.json").read_text())
    data = [record for record in data if record["sample_token"] in tokens]
    for name, records in (("scene", scenes), ("sample", samples), ("sample_data", data)):
        (folder / f"{name}.json").write_text(json.dumps(records))
    assert recording.generate() == 0
    assert recording.files() == {"nuscenes_infos_train_mini_sweep.pkl": 2}
    assert "no scene of the split val: no info file is written for it" in capsys.readouterr().err


def test_other_channels_in_one_folder(recording, mini, capsys):
    """Cameras and LiDAR have other names, and all images lie together."""
    names = {name: f"ring_{i}" for i, name in enumerate(CAMERAS)} | {"LIDAR_TOP": "roof"}

    def rename(sensor):
        sensor["channel"] = names.get(sensor["channel"], sensor["channel"])

    (recording.root / "images").mkdir()

    def move(record):
        source = mini.root / record["filename"]
        if source.suffix == ".jpg":
            target = recording.root / "images" / source.name
            target.symlink_to(source)
            record["filename"] = f"images/{source.name}"

    recording.edit("sensor", rename)
    recording.edit("sample_data", move)
    assert recording.generate() == 0
    cameras = [name for name in names.values() if name != "roof"]
    assert f"set cameras = {cameras} in the config" in capsys.readouterr().out
    file = "nuscenes_infos_train_mini_sweep.pkl"
    with pytest.raises(BadDataError, match=r"no camera CAM_FRONT, but ring_0.*set cameras in the"):
        build(recording.root, file)
    dataset = build(recording.root, file, cameras=cameras[:4], use_lidar=True)
    original = build(mini.root, file, cameras=CAMERAS[:4], use_lidar=True)
    for i in range(len(dataset)):
        sample, theirs = dataset.get_sample(i), original.get_sample(i)
        assert sample.cameras == tuple(cameras[:4])
        assert [Path(p).name for p in sample.img_paths] == [Path(p).name for p in theirs.img_paths]
        np.testing.assert_array_equal(sample.ego2img, theirs.ego2img)


@pytest.mark.parametrize("folder", ["elsewhere/samples/LIDAR_TOP", "points"])
def test_lidar_outside_the_data_root(recording, mini, tmp_path_factory, folder):
    """Absolute paths are used if they exist; otherwise the file is read in the data root."""
    outside = tmp_path_factory.mktemp("lidar") / folder
    outside.mkdir(parents=True)

    def move(record):
        if record["filename"].endswith(".pcd.bin"):
            source = mini.root / record["filename"]
            (outside / source.name).symlink_to(source)
            record["filename"] = str(outside / source.name)
        else:
            record["filename"] = f"/home/someone/nuscenes/{record['filename']}"

    (recording.root / "samples").unlink()
    shutil.copytree(mini.root / "samples", recording.root / "samples")
    shutil.rmtree(recording.root / "samples" / "LIDAR_TOP")
    recording.edit("sample_data", move)
    assert recording.generate() == 0
    steps = [dict(type="LoadLidarSweeps", num_sweeps=2)]
    file = "nuscenes_infos_train_mini_sweep.pkl"
    dataset = build(recording.root, file, use_lidar=True, pipeline=steps)
    sample = dataset[1]
    assert Path(sample.lidar.paths[0]).parent == outside
    assert sample.img_paths[0].startswith(str(recording.root / "samples"))
    assert len(sample.points)
