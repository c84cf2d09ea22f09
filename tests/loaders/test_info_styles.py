"""Info files of other tool chains are read, completed from the tables, or rejected."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from mmengine.registry import DATASETS

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.errors import BadDataError, MissingDataError
from loaders.info_io import CAM_KEYS, CAMERAS, load_infos
from scripts.sweep_infos.generator import main

TRAIN = "nuscenes_infos_train_mini_sweep.pkl"


def infos_of(mini):
    return load_infos(mini.root / TRAIN).infos


def write(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


def dataset_of(mini, path, **changes):
    cfg = dict(type="NuScenesOcc3DDataset", data_root=str(mini.root), ann_file=str(path),
               num_frames=3, test_mode=True, pipeline=[])  # fmt: skip
    return DATASETS.build({**cfg, **changes})


def opus_v1(mini):
    """Remove scene_token and lidar_token; write paths relative to the script's folder."""
    infos = copy.deepcopy(infos_of(mini))
    for info in infos:
        del info["scene_token"], info["lidar_token"]
        for cam in info["cams"].values():
            cam["data_path"] = "data/nuscenes/" + cam["data_path"]
    return {"infos": infos, "metadata": {"version": "v1.0-mini"}}


def sparseocc(mini):
    """Put the camera sweeps into `sweeps`; remove scene names and LiDAR sweeps."""
    infos = copy.deepcopy(infos_of(mini))
    for info in infos:
        for key in ("scene_token", "lidar_token", "scene_name", "lidar_sweeps"):
            del info[key]
        info["sweeps"] = info.pop("cam_sweeps")
        info["gt_names"] = np.array(["car"])
    return {"infos": infos, "metadata": {"version": "v1.0-mini"}}


def bevdet(mini):
    """Put the LiDAR sweeps into `sweeps`; add names of label files and annotations."""
    infos = copy.deepcopy(infos_of(mini))
    for info in infos:
        del info["lidar_token"], info["scene_name"], info["cam_sweeps"]
        info["sweeps"] = [
            {**sweep, "data_path": "./data/nuscenes/" + sweep["data_path"], "type": "lidar"}
            for sweep in info.pop("lidar_sweeps")
        ]
        info["occ_path"] = f"./data/nuscenes/gts/scene/{info['token']}"
        info["ann_infos"] = ([np.zeros(9)], [0])
    return {"infos": infos, "metadata": {"version": "v1.0-mini"}}


def new_style(mini):
    data = [{"sample_idx": i, "token": info["token"]} for i, info in enumerate(infos_of(mini))]
    return {"data_list": data, "metainfo": {"dataset": "nuscenes", "version": "v1.0-mini"}}


def test_opus_v1_is_read_directly(mini, tmp_path):
    dataset = dataset_of(mini, write(tmp_path / "v1.pkl", opus_v1(mini)))
    original = dataset_of(mini, mini.root / TRAIN)
    for i in range(len(original)):
        ours, theirs = dataset.get_sample(i), original.get_sample(i)
        assert ours.img_paths == theirs.img_paths and ours.scene_name == theirs.scene_name
        np.testing.assert_array_equal(ours.ego2img, theirs.ego2img)
    steps = [dict(type="LoadOccupancyLabels")]
    kind = dict(type="NuScenesOccupancyDataset", pipeline=steps)
    with pytest.raises(MissingDataError, match=r"no lidar_token .*--from FILE"):
        dataset_of(mini, tmp_path / "v1.pkl", **kind)[0]


@pytest.mark.parametrize("style", [sparseocc, bevdet, new_style])
def test_files_without_scenes_are_refused_with_the_way_out(mini, tmp_path, style):
    path = write(tmp_path / "other.pkl", style(mini))
    with pytest.raises(BadDataError, match=r"other\.pkl is one of mmdet3d, BEVDet.*--from .*other"):
        dataset_of(mini, path)


@pytest.mark.parametrize("style", [opus_v1, sparseocc, bevdet, new_style])
def test_they_are_completed(mini, tmp_path, style):
    path = write(tmp_path / "other.pkl", style(mini))
    arguments = ["--data-root", str(mini.root), "--version", "v1.0-mini", "--no-progress"]
    assert main([*arguments, "--out-dir", str(tmp_path), "--from", str(path)]) == 0
    completed = load_infos(tmp_path / "other_sweep.pkl")
    assert completed.metadata["source"] == "other.pkl"
    original = infos_of(mini)
    assert len(completed.infos) == len(original)
    for got, own in zip(completed.infos, original, strict=True):
        for key in ("token", "scene_name", "scene_token", "lidar_token", "lidar_path"):
            assert got[key] == own[key]
        frames = [(got["cams"], own["cams"])]
        frames += list(zip(got["cam_sweeps"], own["cam_sweeps"], strict=True))
        for name in CAMERAS:
            for ours, theirs in frames:
                assert ours[name]["data_path"] == theirs[name]["data_path"]
                for key in CAM_KEYS[1:]:
                    np.testing.assert_array_equal(ours[name][key], theirs[name][key])
        assert [s["data_path"] for s in got["lidar_sweeps"]] == [
            s["data_path"] for s in own["lidar_sweeps"]
        ]
        assert ("gt_names" in got) == (style is sparseocc)
    assert len(dataset_of(mini, tmp_path / "other_sweep.pkl")) == len(original)


def test_files_of_no_tool_chain(mini, tmp_path, capsys):
    arguments = ["--data-root", str(mini.root), "--version", "v1.0-mini", "--no-progress"]
    for content in ({"infos": []}, {"data_list": [{"sample_idx": 0}]}, [{"token": "a"}], 3):
        path = write(tmp_path / "other.pkl", content)
        assert main([*arguments, "--out-dir", str(tmp_path), "--from", str(path)]) == 2
        error = capsys.readouterr().err.strip()
        assert error.count("\n") == 0 and "other.pkl" in error
    with pytest.raises(BadDataError, match=r"other\.pkl has no list 'infos'"):
        load_infos(path)
