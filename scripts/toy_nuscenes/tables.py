"""The 13 tables of nuScenes v1.0 as lists of records."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scripts.toy_nuscenes.classes import ATTRIBUTES, CATEGORIES, VISIBILITIES
from scripts.toy_nuscenes.options import KEY_PERIOD_US, Options, Shot, all_shots
from scripts.toy_nuscenes.rig import (
    CAMERAS,
    LIDAR_NAME,
    LIDAR_TRANSLATION,
    lidar_rotation,
    matrix_quaternion,
    yaw_quaternion,
)

if TYPE_CHECKING:  # this imports torch, which the process that writes the tables does not need
    from scripts.toy_nuscenes.annotations import BoxRecord

Record = dict[str, object]
Tables = dict[str, list[Record]]
TABLE_NAMES = (
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
)
START_US = 1_700_000_000_000_000
SCENE_PERIOD_US = 600_000_000


def token(seed: int, *names: object) -> str:
    """Return a token of 32 hex digits that depends only on the arguments."""
    text = "/".join(["toy-nuscenes", str(seed), *map(str, names)])
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class SceneNames:
    """Names, tokens and paths of one scene; `index` counts scenes from 0."""

    options: Options
    index: int
    name: str

    @property
    def start_us(self) -> int:
        """Time stamp of the first key frame."""
        return START_US + self.index * SCENE_PERIOD_US

    def token(self, *names: object) -> str:
        """Return the token of an item in this scene."""
        return token(self.options.seed, self.name, *names)

    @property
    def scene_token(self) -> str:
        """Token of the scene."""
        return self.token("scene")

    def sample_token(self, sample: int) -> str:
        """Return the token of a key frame."""
        return self.token("sample", sample)

    def data_token(self, shot: Shot) -> str:
        """Return the token of a measurement."""
        return self.token("data", shot.sensor, shot.time_us)

    @property
    def logfile(self) -> str:
        """Name of the drive; file names begin with it."""
        return f"toy-{self.options.seed:03d}-{self.index:03d}"

    def path(self, shot: Shot) -> str:
        """Return the path of a measurement's file in the data root."""
        folder = "samples" if shot.is_key else "sweeps"
        suffix = "pcd.bin" if shot.sensor == LIDAR_NAME else "jpg"
        name = f"{self.logfile}__{shot.sensor}__{self.start_us + shot.time_us}.{suffix}"
        return f"{folder}/{shot.sensor}/{name}"

    def occ3d_path(self, sample: int) -> str:
        """Return the path of the Occ3D labels of a key frame."""
        return f"gts/{self.name}/{self.sample_token(sample)}/labels.npz"

    def openocc_path(self, sample: int) -> str:
        """Return the path of the OpenOccupancy labels of a key frame."""
        lidar = Shot(LIDAR_NAME, sample * KEY_PERIOD_US, True, sample)
        return f"occupancy/scene_{self.scene_token}/occupancy/{self.data_token(lidar)}.npy"

    def surroundocc_path(self, sample: int) -> str:
        """Return the path of the SurroundOcc labels of a key frame."""
        lidar = Shot(LIDAR_NAME, sample * KEY_PERIOD_US, True, sample)
        return f"surroundocc/{self.path(lidar).rpartition('/')[2]}.npy"


def common_tables(options: Options) -> Tables:
    """Return the tables that are independent of scenes: category, attribute, visibility, sensor."""
    seed = options.seed
    sensors = [*((camera.name, "camera") for camera in CAMERAS), (LIDAR_NAME, "lidar")]
    return {
        "category": [
            dict(token=token(seed, c.name), name=c.name, description=c.description)
            for c in CATEGORIES
        ],
        "attribute": [
            dict(token=token(seed, a.name), name=a.name, description=a.description)
            for a in ATTRIBUTES
        ],
        "visibility": [
            dict(token=t, level=level, description=text) for t, level, text in VISIBILITIES
        ],
        "sensor": [
            dict(token=token(seed, name), channel=name, modality=kind) for name, kind in sensors
        ],
    }


def _calibrated_sensors(names: SceneNames) -> list[Record]:
    options, out = names.options, []
    for camera in CAMERAS:
        out.append(
            dict(
                token=names.token("calibration", camera.name),
                sensor_token=token(options.seed, camera.name),
                translation=list(camera.translation),
                rotation=matrix_quaternion(camera.rotation()),
                camera_intrinsic=camera.intrinsic(options.width, options.height).tolist(),
            )
        )
    out.append(
        dict(
            token=names.token("calibration", LIDAR_NAME),
            sensor_token=token(options.seed, LIDAR_NAME),
            translation=list(LIDAR_TRANSLATION),
            rotation=matrix_quaternion(lidar_rotation()),
            camera_intrinsic=[],
        )
    )
    return out


def _chain(records: list[Record]) -> None:
    """Fill `prev` and `next` of records in time order."""
    for k, record in enumerate(records):
        record["prev"] = records[k - 1]["token"] if k else ""
        record["next"] = records[k + 1]["token"] if k + 1 < len(records) else ""


def _measurements(
    names: SceneNames, poses: dict[str, tuple[float, float, float]]
) -> tuple[list[Record], list[Record]]:
    """Return the sample_data and ego_pose records; `poses` maps data tokens to global x, y, yaw."""
    options, data, ego = names.options, [], []
    by_sensor: dict[str, list[Record]] = {}
    for shot in all_shots(options):
        key, camera = names.data_token(shot), shot.sensor != LIDAR_NAME
        x, y, yaw = poses[key]
        timestamp = names.start_us + shot.time_us
        ego.append(
            dict(
                token=key,
                timestamp=timestamp,
                rotation=yaw_quaternion(yaw),
                translation=[x, y, 0.0],
            )
        )
        record: Record = dict(
            token=key,
            sample_token=names.sample_token(shot.sample),
            ego_pose_token=key,
            calibrated_sensor_token=names.token("calibration", shot.sensor),
            timestamp=timestamp,
            fileformat="jpg" if camera else "pcd",
            is_key_frame=shot.is_key,
            height=options.height if camera else 0,
            width=options.width if camera else 0,
            filename=names.path(shot),
        )
        by_sensor.setdefault(shot.sensor, []).append(record)
        data.append(record)
    for records in by_sensor.values():
        _chain(records)
    return data, ego


def _samples(names: SceneNames) -> list[Record]:
    out: list[Record] = [
        dict(
            token=names.sample_token(k),
            timestamp=names.start_us + k * KEY_PERIOD_US,
            scene_token=names.scene_token,
        )
        for k in range(names.options.samples)
    ]
    _chain(out)
    return out


def _annotations(
    names: SceneNames, boxes: Sequence[BoxRecord], categories: dict[int, str], shift: np.ndarray
) -> tuple[list[Record], list[Record]]:
    """Return the sample_annotation and instance records."""
    seed, out, instances = names.options.seed, [], []
    by_actor: dict[int, list[Record]] = {}
    for box in boxes:
        x, y, z = box.centre
        record: Record = dict(
            token=names.token("box", box.actor, box.sample),
            sample_token=names.sample_token(box.sample),
            instance_token=names.token("actor", box.actor),
            visibility_token=box.visibility,
            attribute_tokens=[token(seed, box.attribute)] if box.attribute else [],
            translation=[x + float(shift[0]), y + float(shift[1]), z],
            size=list(box.size_wlh),
            rotation=yaw_quaternion(box.yaw),
            prev="",
            next="",
            num_lidar_pts=box.num_lidar_pts,
            num_radar_pts=0,
        )
        by_actor.setdefault(box.actor, []).append(record)
        out.append(record)
    for actor, records in by_actor.items():
        _chain(records)
        instances.append(
            dict(
                token=names.token("actor", actor),
                category_token=token(seed, categories[actor]),
                nbr_annotations=len(records),
                first_annotation_token=records[0]["token"],
                last_annotation_token=records[-1]["token"],
            )
        )
    return out, instances


def scene_tables(
    names: SceneNames,
    description: str,
    location: str,
    poses: dict[str, tuple[float, float, float]],
    boxes: Sequence[BoxRecord],
    categories: dict[int, str],
    shift: np.ndarray,
) -> Tables:
    """Return all records of one scene.

    Args:
        names: names of the scene.
        description: contents of the scene.
        location: name of the place, see `map_tables`.
        poses: data token -> global x, y, yaw of the ego vehicle.
        boxes: annotation boxes in scene coordinates.
        categories: actor index -> category name.
        shift: [2], global minus scene coordinates.
    """
    samples = _samples(names)
    data, ego = _measurements(names, poses)
    annotations, instances = _annotations(names, boxes, categories, shift)
    day = datetime.datetime.fromtimestamp(names.start_us * 1e-6, datetime.timezone.utc).strftime(
        "%Y-%m-%d"
    )
    log: Record = dict(
        token=names.token("log"),
        logfile=names.logfile,
        vehicle="toy",
        date_captured=day,
        location=location,
    )
    scene: Record = dict(
        token=names.scene_token,
        log_token=names.token("log"),
        nbr_samples=len(samples),
        first_sample_token=samples[0]["token"],
        last_sample_token=samples[-1]["token"],
        name=names.name,
        description=description,
    )
    return {
        "log": [log],
        "scene": [scene],
        "sample": samples,
        "calibrated_sensor": _calibrated_sensors(names),
        "sample_data": data,
        "ego_pose": ego,
        "sample_annotation": annotations,
        "instance": instances,
    }


def map_path(seed: int, place: int) -> str:
    """Return the path of a place's mask, relative to the data root."""
    return f"maps/{token(seed, 'map', place)}.png"


def map_tables(options: Options, logs_by_place: dict[int, list[str]]) -> Tables:
    """Return the map table: one mask per place, with the logs recorded there."""
    return {
        "map": [
            dict(
                category="semantic_prior",
                token=token(options.seed, "map", place),
                filename=map_path(options.seed, place),
                log_tokens=logs,
            )
            for place, logs in sorted(logs_by_place.items())
        ]
    }
