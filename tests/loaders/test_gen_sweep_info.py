from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loaders.info_io import CAM_KEYS, CAMERAS, INFO_KEYS, load_infos

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gen_sweep_info.py"


def infos_of(mini, part):
    return load_infos(mini.root / f"nuscenes_infos_{part}_mini_sweep.pkl")


def test_splits_and_header(mini):
    train, val = infos_of(mini, "train"), infos_of(mini, "val")
    assert [info["scene_name"] for info in train.infos] == ["scene-0061"] * 4 + ["scene-0553"] * 2
    assert [info["scene_name"] for info in val.infos] == ["scene-0103"] * 3
    assert train.metadata["version"] == "v1.0-mini"
    assert (train.metadata["num_samples"], train.metadata["num_scenes"]) == (6, 2)
    assert train.metadata["content_hash"] != val.metadata["content_hash"]
    assert str(mini.root) not in repr(train.metadata)


def test_keys_and_order(mini):
    for info in infos_of(mini, "train").infos:
        assert set(INFO_KEYS) <= set(info)
        assert tuple(info["cams"]) == CAMERAS
        for cam in [c for s in [info["cams"], *info["cam_sweeps"]] for c in s.values()]:
            assert set(CAM_KEYS) <= set(cam)
            assert not Path(cam["data_path"]).is_absolute()
            assert (mini.root / cam["data_path"]).is_file()
    scene = [info for info in infos_of(mini, "train").infos if info["scene_name"] == "scene-0061"]
    assert [info["token"] for info in scene] == mini.samples["scene-0061"]


def test_poses_are_those_of_the_world(mini):
    for info in infos_of(mini, "train").infos:
        for cam in [c for s in [info["cams"], *info["cam_sweeps"]] for c in s.values()]:
            truth = mini.truth(cam["data_path"])
            # Stored transposed: p_global = p_sensor @ R + t.
            np.testing.assert_allclose(cam["sensor2global_rotation"], truth.rotation.T, atol=1e-9)
            np.testing.assert_allclose(
                cam["sensor2global_translation"], truth.translation, atol=1e-6
            )
            assert cam["timestamp"] == truth.time_us


def test_sweeps_lie_between_key_frames_newest_first(mini):
    infos = infos_of(mini, "train").infos
    assert [len(info["cam_sweeps"]) for info in infos] == [0, 5, 5, 5, 0, 5]
    for older, info in itertools.pairwise(infos):
        for name in CAMERAS:
            times = [info["cams"][name]["timestamp"]]
            times += [sweep[name]["timestamp"] for sweep in info["cam_sweeps"]]
            if info["cam_sweeps"]:
                times.append(older["cams"][name]["timestamp"])
            repeated = info["token"] == "scene-0061-sample2"
            assert all(a > b or (repeated and a == b) for a, b in itertools.pairwise(times))


def test_sweep_that_misses_a_camera_repeats_the_one_before(mini):
    info = infos_of(mini, "train").infos[2]
    paths = [{n: c["data_path"] for n, c in sweep.items()} for sweep in info["cam_sweeps"]]
    assert paths[4] == paths[3]
    assert paths[3] != paths[2]


def test_lidar_sweeps(mini):
    infos = infos_of(mini, "train").infos
    # Two sweeps and a key frame per interval; never beyond the scene's start, at most ten.
    assert [len(info["lidar_sweeps"]) for info in infos] == [0, 3, 6, 9, 0, 3]
    info = infos[3]
    key = mini.truth(info["lidar_path"])
    point = np.array([3.0, -5.0, 0.7])
    for sweep in info["lidar_sweeps"]:
        truth = mini.truth(sweep["data_path"])
        in_global = truth.rotation @ point + truth.translation
        expected = key.rotation.T @ (in_global - key.translation)
        got = point @ sweep["sensor2lidar_rotation"].T + sweep["sensor2lidar_translation"]
        np.testing.assert_allclose(got, expected, atol=1e-6)


def run_cli(*args, cwd=ROOT):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True, cwd=cwd
    )


def test_command_line_writes_the_same_bytes_again(mini, tmp_path):
    done = run_cli("--data-root", mini.root, "--version", "v1.0-mini", "--out-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 samples of 2 scenes" in done.stdout
    for part in ("train", "val"):
        name = f"nuscenes_infos_{part}_mini_sweep.pkl"
        assert (tmp_path / name).read_bytes() == (mini.root / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "nuscenes_infos_train_mini_sweep.pkl",
        "nuscenes_infos_val_mini_sweep.pkl",
    ]


def one_line_error(done):
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_command_line_errors(mini, tmp_path):
    error = one_line_error(run_cli("--data-root", tmp_path / "nothing", "--version", "v1.0-mini"))
    assert "nothing does not exist" in error and "make_toy_nuscenes" in error
    error = one_line_error(run_cli("--data-root", mini.root, "--version", "v1.0-test"))
    assert "v1.0-test does not exist" in error and "v1.0-mini" in error
    broken = tmp_path / "broken"
    shutil.copytree(mini.root / "v1.0-mini", broken / "v1.0-mini")
    (broken / "v1.0-mini" / "ego_pose.json").write_text("[{")
    error = one_line_error(run_cli("--data-root", broken, "--version", "v1.0-mini"))
    assert "cannot be read" in error and "original archive" in error


def test_split_without_scenes(mini, tmp_path):
    from loaders.errors import BadDataError
    from scripts.gen_sweep_info import open_tables, write_split

    with pytest.raises(BadDataError, match="no scene of the split test"):
        write_split(open_tables(mini.root, "v1.0-mini"), "test", tmp_path / "x.pkl", progress=False)
    assert not (tmp_path / "x.pkl").exists()
