from __future__ import annotations

import itertools
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from loaders.errors import BadDataError, MissingDataError
from loaders.info_io import CAM_KEYS, CAMERAS, INFO_KEYS, content_hash, load_infos
from models.errors import UserError
from scripts.fuzzing.corruption import with_wrong_value
from scripts.sweep_infos import json_stream
from scripts.sweep_infos.generator import open_tables, write_from, write_split
from scripts.sweep_infos.json_stream import iter_records

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
    assert train.metadata["data_root"] == str(mini.root)
    path = mini.root / "nuscenes_infos_train_mini_sweep.pkl"
    assert content_hash(path, train.metadata) == train.metadata["content_hash"]


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


@pytest.mark.parametrize(
    ("version", "scene_names", "expected"),
    [
        ("v1.0-trainval", None, {"train": 4, "val": 5}),
        ("v1.0-test", ["scene-0077", "scene-0078", "scene-0079"], {"test": 9}),
    ],
)
def test_other_versions(mini, tmp_path, version, scene_names, expected):
    shutil.copytree(mini.root / "v1.0-mini", tmp_path / version)
    path = tmp_path / version / "scene.json"
    scenes = json.loads(path.read_text())
    for scene, name in zip(scenes, scene_names or SCENE_NAMES, strict=True):
        scene["name"] = name
    path.write_text(json.dumps(scenes))
    done = run_cli("--data-root", tmp_path, "--version", version, "--no-progress")
    assert done.returncode == 0, done.stderr
    files = {f"nuscenes_infos_{split}_sweep.pkl": count for split, count in expected.items()}
    assert {path.name for path in tmp_path.glob("*.pkl")} == set(files)
    for name, count in files.items():
        content = load_infos(tmp_path / name)
        assert (len(content.infos), content.metadata["version"]) == (count, version)


SCENE_NAMES = ["scene-0061", "scene-0553", "scene-0103"]


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
    with pytest.raises(BadDataError, match="no scene of the split test"):
        write_split(open_tables(mini.root, "v1.0-mini"), "test", tmp_path / "x.pkl", progress=False)
    assert not (tmp_path / "x.pkl").exists()


def test_file_does_not_depend_on_the_number_of_processes(mini, tmp_path):
    tables = open_tables(mini.root, "v1.0-mini")
    for workers in (0, 2):
        path = tmp_path / f"{workers}.pkl"
        assert write_split(tables, "mini_train", path, workers, progress=False) == (2, 6)
    assert (tmp_path / "0.pkl").read_bytes() == (tmp_path / "2.pkl").read_bytes()
    # An ordinary pickle, whose scenes do not mix up what they share.
    plain = pickle.loads((tmp_path / "2.pkl").read_bytes())
    assert [info["token"] for info in plain["infos"]] == [
        token for scene in ("scene-0061", "scene-0553") for token in mini.samples[scene]
    ]


def test_failure_in_a_worker_leaves_the_old_file(mini, tmp_path):
    tables = open_tables(mini.root, "v1.0-mini")
    (tmp_path / "x.pkl").write_bytes(b"old")
    del tables.samples[0][1]["token"]
    with pytest.raises(KeyError):
        write_split(tables, "mini_train", tmp_path / "x.pkl", workers=2, progress=False)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.pkl", b"old")]


class TestTables:
    def change(self, mini, tmp_path, table, edit):
        """Copy the tables and apply `edit(records)` to one."""
        shutil.copytree(mini.root / "v1.0-mini", tmp_path / "v1.0-mini")
        path = tmp_path / "v1.0-mini" / f"{table}.json"
        records = json.loads(path.read_text())
        edit(records)
        path.write_text(json.dumps(records))
        return tmp_path

    def test_key_frame_without_a_camera(self, mini, tmp_path):
        def drop(records):
            records[:] = [r for r in records if r["token"] != "scene-0061-CAM_BACK-0"]

        tables = open_tables(self.change(mini, tmp_path, "sample_data", drop), "v1.0-mini")
        with pytest.raises(BadDataError, match="scene-0061-sample0 of scene-0061 has no CAM_BACK"):
            write_split(tables, "mini_train", tmp_path / "x.pkl", progress=False)
        # In a worker process, too, it is one sentence.
        args = ("--data-root", tmp_path, "--version", "v1.0-mini", "--workers", "2")
        assert "has no CAM_BACK" in one_line_error(run_cli(*args))

    def test_missing_poses(self, mini, tmp_path):
        root = self.change(mini, tmp_path, "ego_pose", lambda records: records.pop())
        with pytest.raises(BadDataError, match=r"ego_pose\.json lacks 1 poses"):
            open_tables(root, "v1.0-mini")

    def test_reference_to_nowhere(self, mini, tmp_path):
        def spoil(records):
            records[3]["calibrated_sensor_token"] = "elsewhere"

        root = self.change(mini, tmp_path, "sample_data", spoil)
        with pytest.raises(BadDataError, match=r"cannot be read \(KeyError: 'elsewhere'\)"):
            open_tables(root, "v1.0-mini")

    def test_missing_table(self, mini, tmp_path):
        shutil.copytree(mini.root / "v1.0-mini", tmp_path / "v1.0-mini")
        (tmp_path / "v1.0-mini" / "sensor.json").unlink()
        with pytest.raises(MissingDataError, match=r"sensor\.json does not exist"):
            open_tables(tmp_path, "v1.0-mini")

    def test_order_of_records_does_not_matter(self, mini, tmp_path):
        root = self.change(mini, tmp_path, "sample_data", lambda records: records.reverse())
        path = tmp_path / "x.pkl"
        write_split(open_tables(root, "v1.0-mini"), "mini_train", path, progress=False)
        content = load_infos(path).metadata["content_hash"]
        assert content == infos_of(mini, "train").metadata["content_hash"]


class TestStream:
    @pytest.mark.parametrize("indent", [None, 0, 2])
    @pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
    def test_any_chunk_size_gives_what_json_gives(self, tmp_path, monkeypatch, chunk, indent):
        monkeypatch.setattr(json_stream, "_CHUNK_CHARACTERS", chunk)
        records = [{"a": i, "b": ["x,]}", {"c": -1.5e-3}], "ü": "é\n"} for i in range(7)]
        path = tmp_path / "a.json"
        for content in (records, []):
            path.write_text(json.dumps(content, indent=indent, ensure_ascii=False))
            assert list(iter_records(path)) == content

    @pytest.mark.parametrize(
        "text", ["", "{}", "[{", '[{"a": 1}', '[{"a": 1},', "[1]", '[{"a" 1}]', "[[]]"]
    )
    def test_broken(self, tmp_path, text):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(BadDataError, match=r"a\.json cannot be read .*original archive"):
            list(iter_records(tmp_path / "a.json"))

    def test_broken_record_ends_the_reading(self, tmp_path, monkeypatch):
        monkeypatch.setattr(json_stream, "_LONGEST_RECORD", 100)
        monkeypatch.setattr(json_stream, "_CHUNK_CHARACTERS", 50)
        path = tmp_path / "a.json"
        path.write_text('[{"a" 1}, ' + '{"b": 1}, ' * 1000)
        with pytest.raises(BadDataError, match="Expecting ':'"):
            list(iter_records(path))


def old_infos(mini):
    """Return infos of the training split as mmdet3d's converter writes them."""
    infos = []
    for info in infos_of(mini, "train").infos:
        cams = {}
        for name, cam in info["cams"].items():
            truth = mini.truth(cam["data_path"])
            # Any split into two poses whose product is the camera's.
            turn = Rotation.from_euler("z", 30, degrees=True).as_matrix()
            shift = np.array([1.0, 2.0, 0.5])
            cams[name] = {
                "data_path": "./data/nuscenes/" + cam["data_path"],
                "type": name,
                "sample_data_token": "t",
                "sensor2ego_translation": (turn.T @ (truth.translation - shift)).tolist(),
                "sensor2ego_rotation": wxyz(turn.T @ truth.rotation),
                "ego2global_translation": shift.tolist(),
                "ego2global_rotation": wxyz(turn),
                "timestamp": cam["timestamp"],
                "cam_intrinsic": cam["cam_intrinsic"],
            }
        sweeps = [
            {**sweep, "data_path": "./data/nuscenes/" + sweep["data_path"], "type": "lidar"}
            for sweep in info["lidar_sweeps"]
        ]
        poses = {key: value for key, value in info.items() if "2ego" in key or "2global" in key}
        infos.append(
            {
                "lidar_path": "./data/nuscenes/" + info["lidar_path"],
                "token": info["token"],
                "timestamp": info["timestamp"],
                "cams": cams,
                "sweeps": sweeps,
                "gt_names": np.array(["car"]),
                **poses,
            }
        )
    return infos


def wxyz(rotation):
    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return [w, x, y, z]


def test_old_infos_of_mmdet3d_are_completed(mini, tmp_path):
    source = tmp_path / "nuscenes_infos_train.pkl"
    source.write_bytes(pickle.dumps({"infos": old_infos(mini), "metadata": {"version": "x"}}))
    args = ("--data-root", mini.root, "--version", "v1.0-mini", "--out-dir", tmp_path)
    done = run_cli(*args, "--from-mmdet3d", source)
    assert done.returncode == 0, done.stderr
    completed = load_infos(tmp_path / "nuscenes_infos_train_sweep.pkl")
    assert completed.metadata["source"] == source.name
    for got, own in zip(completed.infos, infos_of(mini, "train").infos, strict=True):
        assert got["gt_names"].tolist() == ["car"]
        for key in ("scene_name", "scene_token", "lidar_token", "lidar_path", "timestamp"):
            assert got[key] == own[key]
        assert len(got["cam_sweeps"]) == len(own["cam_sweeps"])
        for name in CAMERAS:
            for key in CAM_KEYS[2:]:
                np.testing.assert_allclose(got["cams"][name][key], own["cams"][name][key])
            assert got["cams"][name]["data_path"] == own["cams"][name]["data_path"]
        for a, b in zip(got["lidar_sweeps"], own["lidar_sweeps"], strict=True):
            assert {**a, **b, "type": "lidar"}.keys() == a.keys()
            assert a["data_path"] == b["data_path"]


def test_old_infos_that_do_not_fit(mini, tmp_path):
    tables, path = open_tables(mini.root, "v1.0-mini"), tmp_path / "a.pkl"
    good = old_infos(mini)

    def complete(content):
        path.write_bytes(pickle.dumps(content))
        return write_from(tables, path, tmp_path / "x.pkl", progress=False)

    assert complete({"infos": good[:3], "metadata": {}}) == (1, 3)
    (tmp_path / "x.pkl").unlink()
    with pytest.raises(BadDataError, match="no 'infos' and no 'data_list'"):
        complete({"data_list": [], "metainfo": {}})
    with pytest.raises(BadDataError, match=r"entry 0, lacks 'cams'"):
        complete([{"token": "a"}])
    with pytest.raises(BadDataError, match=r"names key frame nowhere \(and 0 more\)"):
        complete([{**good[0], "token": "nowhere"}])
    del good[0]["cams"]["CAM_BACK"]["ego2global_rotation"]
    with pytest.raises(BadDataError, match=r"camera CAM_BACK .* lacks 'ego2global_rotation'"):
        complete(good)
    assert not (tmp_path / "x.pkl").exists()


def test_old_infos_with_wrong_values(mini, tmp_path):
    """Wrong values are completed or rejected in one sentence; written files can be read."""
    tables, path = open_tables(mini.root, "v1.0-mini"), tmp_path / "a.pkl"
    good = {"infos": old_infos(mini)[:2], "metadata": {}}
    rng = np.random.default_rng(0)
    junk = [None, "a", b"a", -1, np.nan, [], {}, 2**70, np.zeros(2), np.full((3, 3), np.nan)]
    refused = 0
    for _ in range(80):
        what, content = with_wrong_value(good, rng, junk)
        path.write_bytes(pickle.dumps(content))
        try:
            write_from(tables, path, tmp_path / "x.pkl", progress=False)
            load_infos(tmp_path / "x.pkl")
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        except Exception as error:
            raise AssertionError(what) from error
    assert 20 < refused < 80
