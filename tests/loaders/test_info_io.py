from __future__ import annotations

import builtins
import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from loaders.errors import BadDataError, MissingDataError
from loaders.info_io import (
    INFO_KEYS,
    info_file_name,
    load_infos,
    load_pickle,
    relative_data_path,
    save_infos,
)


def a_camera(name="a.jpg"):
    return {
        "data_path": name,
        "timestamp": 1,
        "cam_intrinsic": np.eye(3),
        "sensor2global_rotation": np.eye(3),
        "sensor2global_translation": np.zeros(3),
    }


def an_info(**changes):
    info = {
        **dict.fromkeys(("scene_name", "scene_token", "lidar_token", "lidar_path"), "s"),
        "token": "t",
        "timestamp": 1,
        "cams": {"A": a_camera()},
        "cam_sweeps": [{"A": a_camera("b.jpg")}],
        "lidar_sweeps": [
            {
                "data_path": "c.bin",
                "timestamp": 0,
                "sensor2lidar_rotation": np.eye(3),
                "sensor2lidar_translation": np.zeros(3),
            }
        ],
        **{key: [0.0, 0.0, 0.0] for key in ("lidar2ego_translation", "ego2global_translation")},
        **{key: [1.0, 0.0, 0.0, 0.0] for key in ("lidar2ego_rotation", "ego2global_rotation")},
    }
    assert set(info) == set(INFO_KEYS)
    return {**info, **changes}


class RunsCode:
    """Pickle to a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def write(path: Path, content, protocol=4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def test_round_trip(tmp_path):
    info = an_info(cams={}, cam_sweeps=[], lidar_sweeps=[])
    info.update(a=np.eye(3), b=np.float64(2.5), c=(1, "x", None, {2, 3}), d=b"x", e=True)
    save_infos(tmp_path / "i.pkl", [info], {"version": "v"})
    loaded = load_infos(tmp_path / "i.pkl")
    np.testing.assert_array_equal(loaded.infos[0]["a"], np.eye(3))
    assert {k: v for k, v in loaded.infos[0].items() if k != "a"} == {
        k: v for k, v in info.items() if k != "a"
    }
    assert loaded.metadata["version"] == "v"
    assert loaded.metadata["num_samples"] == 1


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(["car", "bus"]),
        np.array([True, False]),
        np.array(["car", None, 3], dtype=object),
        np.float32(1.5),
        np.int64(7),
        np.bool_(True),
        np.str_("x"),
        collections.OrderedDict(a=1),
        bytes(range(256)),
        bytearray(b"ab"),
        frozenset({1}),
        2 + 3j,
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_plain_values_of_all_protocols(tmp_path, array, protocol):
    loaded = load_pickle(write(tmp_path / "x.pkl", array, protocol))
    np.testing.assert_array_equal(loaded, array)
    assert getattr(loaded, "dtype", None) == getattr(array, "dtype", None)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_1_and_2_read_each_other(tmp_path, protocol):
    data = pickle.dumps({"a": np.arange(5.0), "b": np.float64(3)}, protocol=protocol, fix_imports=0)
    old = data.replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in old
    # In protocol 4 a string is preceded by its length.
    new = old.replace(b"numpy.core.", b"numpy._core.")
    for module in (b"multiarray", b"numeric"):
        name = b"numpy._core." + module
        new = new.replace(
            b"\x8c" + bytes([len(name) - 1]) + name, b"\x8c" + bytes([len(name)]) + name
        )
    for data in (old, new):
        if data.startswith(b"\x80\x04\x95") or data.startswith(b"\x80\x05\x95"):
            data = data[:3] + (len(data) - 11).to_bytes(8, "little") + data[11:]
        (tmp_path / "x.pkl").write_bytes(data)
        loaded = load_pickle(tmp_path / "x.pkl")
        np.testing.assert_array_equal(loaded["a"], np.arange(5.0))
        assert loaded["b"] == 3


def hostile_calls(marker):
    return {
        "os.system": RunsCode(os.system, f"touch {marker}"),
        "eval": RunsCode(eval, f"open({str(marker)!r}, 'w')"),
        "exec": RunsCode(exec, f"open({str(marker)!r}, 'w')"),
        "open": RunsCode(open, str(marker), "w"),
        "getattr": RunsCode(getattr, np.zeros(1), "tofile"),
        "import": RunsCode(builtins.__import__, "os"),
        "np.load": RunsCode(np.load, str(marker)),
        "np.save": RunsCode(np.save, str(marker), np.zeros(1)),
        "np.memmap": RunsCode(np.memmap, str(marker), "uint8", "w+", 0, (4,)),
        "print": RunsCode(print, "x"),
        "Path.touch": RunsCode(Path.touch, marker),
        "codec": RunsCode(__import__("_codecs").encode, "x", "rot13"),
        "in an object array": np.array([RunsCode(os.system, f"touch {marker}")], dtype=object),
        "in a list": [{"a": (RunsCode(os.system, f"touch {marker}"),)}],
    }


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("name", hostile_calls(Path("x")))
def test_hostile_pickle_is_refused_and_runs_nothing(tmp_path, name, protocol):
    marker = tmp_path / "ran.npy"
    path = write(tmp_path / "evil.pkl", {"infos": [hostile_calls(marker)[name]]}, protocol)
    with pytest.raises(BadDataError, match=r"evil\.pkl is (rejected|no complete pickle)"):
        load_infos(path)
    assert not marker.exists()


def test_persistent_ids_are_refused(tmp_path):
    (tmp_path / "p.pkl").write_bytes(b"\x80\x04Pabc\n.")
    with pytest.raises(BadDataError, match="outside the file"):
        load_pickle(tmp_path / "p.pkl")


def test_missing_broken_or_foreign_files(tmp_path):
    with pytest.raises(MissingDataError, match=r"none\.pkl does not exist.*gen_sweep_info"):
        load_infos(tmp_path / "none.pkl")
    path = tmp_path / "i.pkl"
    save_infos(path, [an_info()], {})
    whole = path.read_bytes()
    for broken in (b"", b"hello", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(broken)
        with pytest.raises(BadDataError, match=r"i\.pkl is .*gen_sweep_info"):
            load_infos(path)
    for content in ([], {"infos": 3}, {"infos": [], "metadata": 1}):
        with pytest.raises(BadDataError, match=r"i\.pkl has"):
            load_infos(write(path, content))
    info = an_info()
    del info["cam_sweeps"]
    with pytest.raises(BadDataError, match=r"entry 1, lacks 'cam_sweeps'"):
        load_infos(write(path, {"infos": [an_info(), info]}))
    with pytest.raises(BadDataError, match="cannot be read"):
        load_infos(tmp_path)


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "i.pkl"
    save_infos(path, [an_info()], {"version": "old"})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_infos(path, [an_info(bad=lambda: 0)], {"version": "new"})
    assert load_infos(path).metadata["version"] == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["i.pkl"]


@pytest.mark.parametrize(
    ("stored", "relative"),
    [
        ("samples/CAM_FRONT/a.jpg", "samples/CAM_FRONT/a.jpg"),
        ("./data/nuscenes/samples/CAM_FRONT/a.jpg", "samples/CAM_FRONT/a.jpg"),
        ("/home/u/nuscenes/sweeps/CAM_BACK/b.jpg", "sweeps/CAM_BACK/b.jpg"),
        ("/data/samples/nuscenes/sweeps/CAM_BACK/b.jpg", "sweeps/CAM_BACK/b.jpg"),
        ("data\\nuscenes\\samples\\CAM_FRONT\\a.jpg", "samples/CAM_FRONT/a.jpg"),
        ("custom/a.jpg", "custom/a.jpg"),
        ("/abs/custom/a.jpg", "/abs/custom/a.jpg"),
    ],
)
def test_relative_data_path(stored, relative):
    assert relative_data_path(stored) == relative


@pytest.mark.parametrize(
    ("version", "split", "name"),
    [
        ("v1.0-trainval", "train", "nuscenes_infos_train_sweep.pkl"),
        ("v1.0-trainval", "val", "nuscenes_infos_val_sweep.pkl"),
        ("v1.0-test", "test", "nuscenes_infos_test_sweep.pkl"),
        ("v1.0-mini", "train", "nuscenes_infos_train_mini_sweep.pkl"),
        ("v1.0-mini", "val", "nuscenes_infos_val_mini_sweep.pkl"),
        ("v1.0-city", "val", "nuscenes_infos_val_city_sweep.pkl"),
        ("courtyard", "train", "nuscenes_infos_train_courtyard_sweep.pkl"),
    ],
)
def test_info_file_name(version, split, name):
    assert info_file_name(version, split) == name


def spoil(path, value):
    """Change a value of an info; `path` holds keys and indices."""

    def change(info):
        *way, last = path
        for step in way:
            info = info[step]
        info[last] = value

    return change


CAM, SWEEP, POINTS = ("cams", "A"), ("cam_sweeps", 0, "A"), ("lidar_sweeps", 0)
GROWING = [[1.0]]
for _ in range(60):  # 2^60 numbers if somebody unfolds it
    GROWING = [GROWING, GROWING]


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("timestamp",), "a", "'timestamp' is not an integer of microseconds"),
        (("timestamp",), 1.5, "'timestamp'"),
        (("timestamp",), True, "'timestamp'"),
        (("timestamp",), -1, "'timestamp'"),
        (("timestamp",), 10**400, "'timestamp'"),
        (("timestamp",), [1], "'timestamp'"),
        ((*CAM, "timestamp"), None, r"'cams\.A\.timestamp'"),
        ((*SWEEP, "timestamp"), "9", r"'cam_sweeps\[0\]\.A\.timestamp'"),
        ((*POINTS, "timestamp"), np.nan, r"'lidar_sweeps\[0\]\.timestamp'"),
        (("token",), 5, "'token' is not a text"),
        (("token",), "", "'token'"),
        (("scene_token",), ["s"], "'scene_token'"),
        (("scene_name",), None, "'scene_name'"),
        (("lidar_path",), b"a.bin", "'lidar_path'"),
        ((*CAM, "data_path"), 3, r"'cams\.A\.data_path'"),
        ((*CAM, "data_path"), "a\0b", r"'cams\.A\.data_path'"),
        ((*CAM, "data_path"), "\ud800", r"'cams\.A\.data_path'"),
        ((*CAM, "data_path"), "a" * 5000, r"'cams\.A\.data_path'"),
        (("cams",), [a_camera()], "'cams' is not a dict"),
        (CAM, "a.jpg", r"'cams\.A' is not a dict"),
        (SWEEP, 7, r"'cam_sweeps\[0\]\.A' is not a dict"),
        (("cam_sweeps",), {"A": a_camera()}, "'cam_sweeps' is not a list"),
        (("cam_sweeps",), None, "'cam_sweeps' is not a list"),
        (("lidar_sweeps", 0), None, r"'lidar_sweeps\[0\]' is not a dict"),
        ((*CAM, "cam_intrinsic"), np.eye(4), r"'cams\.A\.cam_intrinsic' is not 3 x 3"),
        ((*CAM, "cam_intrinsic"), np.full((3, 3), np.nan), r"'cams\.A\.cam_intrinsic'"),
        ((*CAM, "cam_intrinsic"), np.full((3, 3), "1"), r"'cams\.A\.cam_intrinsic'"),
        ((*CAM, "cam_intrinsic"), [[1, 2, 3], [4, 5, 6], [7, 8]], r"'cams\.A\.cam_intrinsic'"),
        ((*CAM, "cam_intrinsic"), GROWING, r"'cams\.A\.cam_intrinsic'"),
        ((*SWEEP, "sensor2global_rotation"), np.zeros((3, 3)), "that make a rotation"),
        ((*SWEEP, "sensor2global_translation"), [0.0, np.inf, 0.0], "sensor2global_translation'"),
        (("ego2global_rotation",), [0.0] * 4, "'ego2global_rotation' .* make a quaternion"),
        (("ego2global_rotation",), [1.0, 0.0], "'ego2global_rotation'"),
        (("lidar2ego_translation",), "000", "'lidar2ego_translation'"),
        (("lidar2ego_translation",), [0.0, 1e200, 0.0], "'lidar2ego_translation'"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, path, value, named):
    infos = [an_info(token="first"), an_info(token="second")]
    spoil(path, value)(infos[1])
    stored = write(tmp_path / "i.pkl", {"infos": infos})
    name = "" if path == ("token",) else r" \(second\)"
    with pytest.raises(BadDataError, match=rf"i\.pkl, entry 1{name}, .*{named}.*gen_sweep_info"):
        load_infos(stored)


def test_missing_key_of_a_camera_is_named(tmp_path):
    info = an_info()
    del info["cam_sweeps"][0]["A"]["cam_intrinsic"]
    with pytest.raises(BadDataError, match=r"'cam_sweeps\[0\]\.A\.cam_intrinsic' is missing"):
        load_infos(write(tmp_path / "i.pkl", {"infos": [info]}))


def test_lists_and_arrays_of_other_numbers_are_accepted(tmp_path):
    info = an_info(timestamp=np.int64(5), ego2global_translation=np.zeros(3, np.float32))
    info["cams"]["A"].update(
        cam_intrinsic=np.eye(3, dtype=int), sensor2global_rotation=np.eye(3).tolist(), timestamp=6.0
    )
    info["cam_sweeps"] = ()
    del info["lidar_sweeps"][0]["sensor2lidar_rotation"]  # read only where LiDAR is used
    assert len(load_infos(write(tmp_path / "i.pkl", {"infos": [info]})).infos) == 1


@pytest.mark.parametrize(
    "metadata", [{"version": 1}, {"content_bytes": "9"}, {"num_samples": -1}, {"content_hash": 0}]
)
def test_wrong_header_is_named(tmp_path, metadata):
    (key,) = metadata
    with pytest.raises(BadDataError, match=rf"i\.pkl, metadata, '{key}'"):
        load_infos(write(tmp_path / "i.pkl", {"infos": [an_info()], "metadata": metadata}))
