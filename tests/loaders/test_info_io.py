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


def an_info(**changes):
    return {**{key: [] for key in INFO_KEYS}, "scene_token": "s", **changes}


class RunsCode:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def write(path: Path, content, protocol=4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def test_round_trip(tmp_path):
    info = an_info(a=np.eye(3), b=np.float64(2.5), c=(1, "x", None, {2, 3}), d=b"x", e=True)
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
    with pytest.raises(BadDataError, match=r"evil\.pkl is (refused|no complete pickle)"):
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
