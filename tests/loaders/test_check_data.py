"""scripts/check_data.py finds every kind of damage, and nothing in an intact data set."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image

from loaders.errors import BadDataError
from loaders.info_io import load_infos, save_infos
from scripts.data_checks import checker as check_data
from scripts.fuzzing.corruption import damaged, with_wrong_value

TRAIN, VAL = "nuscenes_infos_train_mini_sweep.pkl", "nuscenes_infos_val_mini_sweep.pkl"
CONFIG = """
custom_imports = dict(imports=['loaders.register'], allow_failed_imports=False)
data_root = '.'
pipeline = [
    dict(type='DrawImageAug', raw_hw={raw_hw}, final_hw=(32, 96)),
    dict(type='LoadMultiViewImages', raw_hw={raw_hw}, image_cache_mb=9),
    dict(type='{labels}'),
    dict(type='LoadLidarSweeps'),
    dict(type='RandomFlipBEV'),
    dict(type='PackOccSample')]
dataset = dict(
    type='{kind}', version='v1.0-mini', num_frames=2, use_lidar=True,
    pipeline=pipeline, on_error='skip')
train_dataloader = dict(dataset=dict(ann_file='{train}', **dataset))
val_dataloader = dict(dataset=dict(ann_file='{val}', test_mode=True, **dataset))
test_dataloader = val_dataloader
"""
FORMS = {
    "Occ3D": ("NuScenesOcc3DDataset", "LoadOcc3DLabels"),
    "OpenOccupancy": ("NuScenesOccupancyDataset", "LoadOccupancyLabels"),
}


@pytest.fixture
def copied(mini, tmp_path):
    """Return a copy of the data set for damage."""
    root = tmp_path / "nuscenes"
    for folder in ("samples", "sweeps", "gts", "occupancy"):
        shutil.copytree(mini.root / folder, root / folder)
    for name in (TRAIN, VAL):
        shutil.copy(mini.root / name, root / name)
    return root


def run(root, capsys, *options, form="Occ3D", full=True, raw_hw=(90, 160)):
    """Return exit code and output."""
    kind, labels = FORMS[form]
    config = root.parent / "config.py"
    config.write_text(CONFIG.format(kind=kind, labels=labels, train=TRAIN, val=VAL, raw_hw=raw_hw))
    arguments = [str(config), *(["--full"] if full else []), "--workers", "0", *options]
    code = check_data.main([*arguments, "--cfg-options", f"data_root={root}"])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("workers", ["0", "2"])
def test_whole_data_set(mini, tmp_path, capsys, form, workers):
    os.symlink(mini.root, tmp_path / "nuscenes")
    code, out = run(tmp_path / "nuscenes", capsys, "--workers", workers, form=form)
    assert code == 0 and "nothing wrong was found" in out
    # All images and LiDAR files once, and labels per key frame; `test` is `val`, not looked at
    # again. One sweep is not in the infos, for one camera misses it: five images.
    frames = [f for (scene, _), fs in mini.frames.items() if scene != "scene-0103" for f in fs]
    assert f"train: opened {len(frames) - 5 + 6} files of 6 of 6 samples" in out
    assert "val: opened" in out and "test:" not in out


def damage(root, what):
    """Damage one thing; return the expected text of the report."""
    images = sorted((root / "samples" / "CAM_BACK").iterdir())
    points = sorted((root / "sweeps" / "LIDAR_TOP").iterdir())
    labels = root / "gts" / "scene-0061" / "scene-0061-sample1" / "labels.npz"
    rows = sorted((root / "occupancy").rglob("*.npy"))[0]
    if what == "missing image":
        images[2].unlink()
        return "image", "missing", images[2].name
    if what == "truncated image":
        images[2].write_bytes(images[2].read_bytes()[:-100])
        return "image", "truncated", images[2].name
    if what == "broken sweep image":
        sweep = sorted((root / "sweeps" / "CAM_FRONT").iterdir())[3]
        sweep.write_bytes(b"no image")
        return "image", "broken", sweep.name
    if what == "missing points":
        points[1].unlink()
        return "LiDAR", "missing", points[1].name
    if what == "truncated points":
        points[1].write_bytes(points[1].read_bytes()[:-7])
        return "LiDAR", "truncated", points[1].name
    if what == "missing labels":
        labels.unlink()
        return "labels", "missing", "scene-0061-sample1"
    if what == "grid shape":
        np.savez(labels, **{k: np.zeros((9, 9, 9), np.uint8) for k in LABEL_KEYS})
        return "labels", "wrong shape", "(9, 9, 9)"
    if what == "class":
        grid = np.full((200, 200, 16), 18, np.uint8)
        np.savez(labels, **{k: grid for k in LABEL_KEYS})
        return "labels", "class out of range", "has class 18"
    assert what == "open class"
    np.save(rows, np.array([[0, 0, 0, 30]]))
    return "labels", "class out of range", "has class 30"


LABEL_KEYS = ("semantics", "mask_camera", "mask_lidar")


@pytest.mark.parametrize(
    "what",
    [
        "missing image",
        "truncated image",
        "broken sweep image",
        "missing points",
        "truncated points",
        "missing labels",
        "grid shape",
        "class",
        "open class",
    ],
)
def test_damaged_files(copied, capsys, what):
    what_kind, kind, name = damage(copied, what)
    code, out = run(copied, capsys, form="OpenOccupancy" if what == "open class" else "Occ3D")
    assert code == 1
    line = next(line for line in out.splitlines() if line.startswith(f"{what_kind} "))
    assert [cell.strip() for cell in line.split("|")] == [what_kind, kind, "1"]
    assert name in out


def with_infos(copied, change):
    content = load_infos(copied / TRAIN)
    change(content.infos)
    save_infos(copied / TRAIN, content.infos, {"version": "v1.0-mini"})


def test_damaged_infos(copied, capsys):
    def change(infos):
        infos[1]["cams"]["CAM_BACK"]["sensor2global_rotation"] *= 1.1
        infos[2]["cams"]["CAM_FRONT"]["cam_intrinsic"] = np.diag([0.0, 100.0, 1.0])
        infos[2]["cam_sweeps"][0]["CAM_FRONT"]["timestamp"] += 400_000
        infos[3]["lidar_sweeps"][4]["timestamp"] += 10**7
        infos[3]["cams"]["CAM_FRONT_LEFT"]["timestamp"] += 700_000
        infos[4]["lidar_sweeps"].append({**infos[3]["lidar_sweeps"][0]})
        infos[4]["lidar_sweeps"][0]["sensor2lidar_rotation"] = np.zeros((3, 3))
        infos[5]["ego2global_translation"] = [1e4, 0, 0]

    with_infos(copied, change)
    code, out = run(copied, capsys)
    assert code == 1
    rows = [tuple(c.strip() for c in line.split("|")) for line in out.splitlines() if "|" in line]
    found = {(what, kind): count for what, kind, count in rows[1:]}
    assert found["pose", "no rotation or position"] == "2"  # a camera, a sweep
    assert found["calibration", "no focal length"] == "1"
    assert found["pose", "jump"] == "1"
    assert found["time stamp", "far from the key frame"] == "1"
    # The camera sweep that is newer than its key frame, and the LiDAR sweep.
    assert found["time stamp", "out of order"] == "2"


def test_key_frame_that_comes_twice(copied, capsys):
    with_infos(copied, lambda infos: infos.append({**infos[5]}))
    code, out = run(copied, capsys)
    assert code == 1 and "has key frame scene-0553-sample1 2 times" in out


def test_edited_info_file(copied, capsys):
    content = pickle.loads((copied / TRAIN).read_bytes())
    content["infos"][0]["scene_name"] = "scene-0062"
    (copied / TRAIN).write_bytes(pickle.dumps(content))
    code, out = run(copied, capsys)
    assert code == 1 and "was changed after it was written" in out


def test_data_set_that_cannot_be_built(copied, capsys):
    (copied / VAL).write_bytes(b"\x80\x03cos\nsystem\n.")
    code, out = run(copied, capsys)
    assert code == 1
    assert "data set val" in out and "is rejected" in out and "train: opened" in out


def test_sampling_stops_in_time_and_is_spread(copied, capsys):
    code, out = run(copied, capsys, "--seconds", "0", full=False)
    assert code == 0 and "train: opened 0 files of 0 of 6 samples" in out
    for number in (1, 2, 3, 10, 97, 6019):
        order = check_data.spread_order(number)
        assert sorted(order) == list(range(number))
        if number > 10:
            gaps = np.diff(sorted(order[: number // 10]))
            assert gaps.max() < 30


def test_wrong_config(tmp_path, capsys):
    assert check_data.main([str(tmp_path / "none.py")]) == 2
    (tmp_path / "empty.py").write_text("log_level = 'INFO'\n")
    assert check_data.main([str(tmp_path / "empty.py")]) == 2
    assert "has no train_dataloader" in capsys.readouterr().err


def test_command_line_help():
    with pytest.raises(SystemExit) as stop:
        check_data.main(["--help"])
    assert stop.value.code == 0
    assert Path(check_data.__file__).is_file()


# ---------------------------------------------------------------- images of odd size


def odd_images(root: Path) -> None:
    """Replace all images by PNGs that are one pixel smaller in each direction, same names."""
    for folder in ("samples", "sweeps"):
        for path in (root / folder).glob("CAM_*/*.jpg"):
            with Image.open(path) as image:
                image.crop((0, 0, 159, 89)).save(path, "PNG")


def test_png_files_of_odd_size(copied, capsys):
    odd_images(copied)
    code, out = run(copied, capsys)
    assert code == 1 and "has 89 x 159 pixels, expected 90 x 160: set raw_hw" in out
    code, out = run(copied, capsys, raw_hw=(89, 159))
    assert code == 0 and "nothing wrong was found" in out


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("resize", [0.6, 0.3, 0.15])
def test_odd_sizes_load_in_both_modes(copied, mode, resize):
    odd_images(copied)
    size = (int(89 * resize), int(159 * resize))
    steps = [
        dict(type="DrawImageAug", raw_hw=(89, 159), final_hw=size),
        dict(type="LoadMultiViewImages", raw_hw=(89, 159), image_mode=mode),
    ]
    dataset = DATASETS.build(
        dict(
            type="NuScenesOcc3DDataset",
            data_root=str(copied),
            ann_file=TRAIN,
            num_frames=1,
            pipeline=steps,
            test_mode=True,
        )
    )
    assert dataset[1].images.shape == (6, *size, 3)


# ---------------------------------------------------------------- damage drawn at random


KINDS = {
    "image": "samples/CAM_FRONT/*.jpg",
    "sweep": "sweeps/CAM_BACK/*.jpg",
    "LiDAR": "samples/LIDAR_TOP/*.bin",
    "Occ3D": "gts/*/*/labels.npz",
    "OpenOccupancy": "occupancy/*/occupancy/*.npy",
}


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_is_skipped_and_reported(copied, capsys, seed):
    """Training with on_error='skip' and the check only report findings."""
    rng = np.random.default_rng(seed)
    others = [next(copied.glob(pattern)).read_bytes() for pattern in KINDS.values()]
    for pattern in KINDS.values():
        for path in sorted(copied.glob(pattern))[:3]:
            data = damaged(path.read_bytes(), rng)[1]
            path.write_bytes(others[int(rng.integers(5))] if rng.random() < 0.2 else data)
    for form, (kind, labels) in FORMS.items():
        code, out = run(copied, capsys, form=form)
        assert code == 1 and "Traceback" not in out
        dataset = DATASETS.build(
            dict(
                type=kind,
                data_root=str(copied),
                ann_file=TRAIN,
                num_frames=2,
                use_lidar=True,
                on_error="skip",
                pipeline=[
                    dict(type="DrawImageAug", raw_hw=(90, 160), final_hw=(32, 96)),
                    dict(type="LoadMultiViewImages", raw_hw=(90, 160)),
                    dict(type=labels),
                    dict(type="LoadLidarSweeps"),
                    dict(type="PackOccSample"),
                ],
            )
        )
        for index in range(len(dataset)):
            try:
                dataset[index]
            except BadDataError as error:  # all samples are broken
                assert "cannot be loaded" in str(error)
        assert dataset.skipped


@pytest.mark.parametrize("seed", range(14))
def test_info_files_damaged_at_random(mini, tmp_path, capsys, seed):
    rng = np.random.default_rng(seed)
    root = tmp_path / "nuscenes"
    root.mkdir()
    for name in ("samples", "sweeps", "gts", VAL):
        os.symlink(mini.root / name, root / name)
    data = (mini.root / TRAIN).read_bytes()
    if seed % 2:
        content = pickle.loads(data)
        junk = [None, "a", -1, np.nan, [], {}, 2**70, np.zeros(2), b"x", {"CAM_FRONT": 3}]
        _, content = with_wrong_value(content, rng, junk)
        (root / TRAIN).write_bytes(pickle.dumps(content))
    else:
        (root / TRAIN).write_bytes(damaged(data, rng)[1])
    code, out = run(root, capsys, "--seconds", "0", full=False)
    assert code in (0, 1, 2) and "Traceback" not in out
