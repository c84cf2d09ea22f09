"""The generated tables have nuScenes' format, and the devkit reads them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.utils import splits

from scripts.toy_nuscenes.options import Options
from scripts.toy_nuscenes.rig import CAMERAS
from scripts.toy_nuscenes.tables import TABLE_NAMES

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def nusc(small_root: Path) -> NuScenes:
    return NuScenes(version="v1.0-mini", dataroot=str(small_root), verbose=False)


def test_scene_names_are_those_of_the_mini_split() -> None:
    names = Options(scenes=10).scene_names()
    assert names[:8] == splits.mini_train and names[8:] == splits.mini_val
    assert Options(scenes=2).scene_names() == [splits.mini_train[0], splits.mini_val[0]]


def test_more_scenes_are_split_as_trainval_is() -> None:
    options = Options(scenes=20)
    assert options.version == "v1.0-trainval"
    names = options.scene_names()
    assert len(set(names)) == 20
    assert sum(name in splits.train for name in names) == 16
    assert sum(name in splits.val for name in names) == 4


def test_all_tables_are_there_with_unique_tokens(nusc: NuScenes) -> None:
    assert len(TABLE_NAMES) == 13
    for name in TABLE_NAMES:
        records = getattr(nusc, name)
        assert records, f"table {name} is empty"
        assert len({record["token"] for record in records}) == len(records)


def test_foreign_keys_resolve(nusc: NuScenes) -> None:
    for record in nusc.sample_data:
        sample = nusc.get("sample", record["sample_token"])
        pose = nusc.get("ego_pose", record["ego_pose_token"])
        assert pose["timestamp"] == record["timestamp"]
        assert abs(np.linalg.norm(pose["rotation"]) - 1) < 1e-9
        calibration = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
        assert nusc.get("sensor", calibration["sensor_token"])["channel"] == record["channel"]
        assert (Path(nusc.dataroot) / record["filename"]).is_file()
        if record["is_key_frame"]:
            assert abs(sample["timestamp"] - record["timestamp"]) < 50_000
    for box in nusc.sample_annotation:
        assert nusc.get("visibility", box["visibility_token"])
        assert all(nusc.get("attribute", token) for token in box["attribute_tokens"])
        assert min(box["size"]) > 0


def test_measurements_form_chains_with_the_rates_of_the_rig(
    nusc: NuScenes, small_options: Options
) -> None:
    for scene in nusc.scene:
        sample = nusc.get("sample", scene["first_sample_token"])
        assert set(sample["data"]) == {camera.name for camera in CAMERAS} | {"LIDAR_TOP"}
        for channel, token in sample["data"].items():
            record = nusc.get("sample_data", token)
            assert record["prev"] == ""
            times, keys = [], []
            while True:
                times.append(record["timestamp"])
                keys.append(record["is_key_frame"])
                if not record["next"]:
                    break
                following = nusc.get("sample_data", record["next"])
                assert following["prev"] == record["token"] and following["channel"] == channel
                record = following
            rate = 4 if channel == "LIDAR_TOP" else 12
            assert np.allclose(np.diff(times), 1e6 / rate, atol=1)
            assert sum(keys) == small_options.samples
            assert len(times) == (small_options.samples - 1) * rate // 2 + 1


def test_samples_form_a_chain(nusc: NuScenes, small_options: Options) -> None:
    for scene in nusc.scene:
        tokens, token = [], scene["first_sample_token"]
        while token:
            tokens.append(token)
            token = nusc.get("sample", token)["next"]
        assert tokens[-1] == scene["last_sample_token"]
        assert len(tokens) == scene["nbr_samples"] == small_options.samples


def test_annotations_form_chains_per_instance(nusc: NuScenes) -> None:
    by_instance = defaultdict(list)
    for box in nusc.sample_annotation:
        by_instance[box["instance_token"]].append(box)
    assert len(by_instance) == len(nusc.instance)
    for instance in nusc.instance:
        token, count = instance["first_annotation_token"], 0
        previous = ""
        while token:
            box = nusc.get("sample_annotation", token)
            assert box["prev"] == previous and box["instance_token"] == instance["token"]
            previous, token, count = box["token"], box["next"], count + 1
        assert previous == instance["last_annotation_token"]
        assert count == instance["nbr_annotations"] == len(by_instance[instance["token"]])


def test_moving_things_have_the_velocity_of_their_track(nusc: NuScenes) -> None:
    moving = 0
    for box in nusc.sample_annotation:
        names = [nusc.get("attribute", token)["name"] for token in box["attribute_tokens"]]
        velocity = nusc.box_velocity(box["token"])
        if np.isnan(velocity).any():
            continue
        speed = float(np.linalg.norm(velocity[:2]))
        if "vehicle.moving" in names or "pedestrian.moving" in names:
            moving += 1
            assert 0.3 < speed < 15
        if "vehicle.parked" in names:
            assert speed < 1e-6
    assert moving >= 5


def test_devkit_renders(nusc: NuScenes, tmp_path: Path) -> None:
    sample = nusc.sample[0]
    nusc.render_sample(sample["token"], out_path=str(tmp_path / "sample.png"), verbose=False)
    nusc.render_pointcloud_in_image(
        sample["token"], out_path=str(tmp_path / "points.png"), verbose=False
    )
    nusc.render_egoposes_on_map(
        log_location=nusc.log[0]["location"], out_path=str(tmp_path / "map.png")
    )
    matplotlib.pyplot.close("all")
    assert all(
        (tmp_path / name).stat().st_size > 5000 for name in ("sample.png", "points.png", "map.png")
    )


def test_map_mask_is_road_under_the_ego_vehicle(nusc: NuScenes) -> None:
    mask = nusc.map[0]["mask"]
    for pose in nusc.ego_pose[::7]:
        x, y, _ = pose["translation"]
        assert mask.is_on_mask(np.array([x]), np.array([y]))[0]
