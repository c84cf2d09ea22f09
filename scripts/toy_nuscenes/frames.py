"""Render everything of one scene and write its files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from scripts.runtime.atomic_write import write_atomically, write_json
from scripts.toy_nuscenes import lidar
from scripts.toy_nuscenes.annotations import annotate
from scripts.toy_nuscenes.camera import take_image
from scripts.toy_nuscenes.classes import Occ
from scripts.toy_nuscenes.errors import DataSetError
from scripts.toy_nuscenes.files import write_png
from scripts.toy_nuscenes.labels import (
    Observed,
    camera_in_key_ego,
    observe,
    occ3d,
    openocc_rows,
    surroundocc_rows,
)
from scripts.toy_nuscenes.options import KEY_PERIOD_US, Options, Shot, all_shots
from scripts.toy_nuscenes.rig import CAMERAS, LIDAR_NAME
from scripts.toy_nuscenes.scene import Scene, make_scene
from scripts.toy_nuscenes.tables import SceneNames, scene_tables

_CAMERA_INDEX = {camera.name: k for k, camera in enumerate(CAMERAS)}


def _save(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _save_array(path: Path, array: np.ndarray) -> None:
    write_atomically(path, lambda p: np.save(p, array))


def _write_labels(
    root: Path, options: Options, names: SceneNames, scene: Scene, observed: Observed, sample: int
) -> None:
    time_s = sample * KEY_PERIOD_US * 1e-6
    key_ego = scene.ego(time_s)
    cameras = []
    for camera in CAMERAS:
        ego = scene.ego(time_s + camera.trigger_offset_us * 1e-6)
        pose = camera_in_key_ego(ego, key_ego, np.array(camera.translation), camera.rotation())
        cameras.append((*pose, camera.intrinsic(*options.image_size)))
    labels = occ3d(scene, observed, time_s, cameras, options.image_size)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        semantics=labels.semantics,
        mask_lidar=labels.mask_lidar.astype(np.uint8),
        mask_camera=labels.mask_camera.astype(np.uint8),
    )
    _save(root / names.occ3d_path(sample), buffer.getvalue())
    _save_array(root / names.openocc_path(sample), openocc_rows(scene, observed, time_s))
    rows = surroundocc_rows(scene, observed, time_s)
    _save_array(root / names.surroundocc_path(sample), rows)


def lacks_labels(root: Path, options: Options, names: SceneNames) -> bool:
    """Return whether a scene was made before the generator wrote SurroundOcc labels."""
    paths = (root / names.surroundocc_path(sample) for sample in range(options.samples))
    return not all(path.exists() for path in paths)


def add_labels(
    root: Path, options: Options, names: SceneNames, progress: Callable[[int], None]
) -> None:
    """Write the SurroundOcc labels of a finished scene; leave all other files unchanged."""
    scene = make_scene(options.seed, names.index, options.duration_s)
    observed = observe(scene, options.duration_s)
    for sample in range(options.samples):
        rows = surroundocc_rows(scene, observed, sample * KEY_PERIOD_US * 1e-6)
        _save_array(root / names.surroundocc_path(sample), rows)
        progress(1)


class _Recorder:
    """Recorder of a scene's measurements in time order; keeps the data for the annotations."""

    def __init__(self, root: Path, options: Options, names: SceneNames, scene: Scene) -> None:
        self.root, self.options, self.names, self.scene = root, options, names, scene
        shape = (options.samples, len(scene.actors))
        self.free, self.seen = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.key_points: list[np.ndarray] = []

    def take(self, shot: Shot) -> None:
        """Take and write one measurement."""
        seed = (self.options.seed, self.names.index, abs(shot.time_us), int(shot.time_us < 0))
        time_s = shot.time_us * 1e-6
        path = self.root / self.names.path(shot)
        if shot.sensor == LIDAR_NAME:
            points = lidar.sweep(self.scene, time_s, self.options.lidar_azimuths, (*seed, 99))
            if shot.is_key:
                self.key_points.append(points)
            _save(path, points.tobytes())
            return
        index = _CAMERA_INDEX[shot.sensor]
        result = take_image(
            self.scene, CAMERAS[index], time_s, self.options.image_size, (*seed, index), shot.is_key
        )
        if shot.is_key:
            self.free[shot.sample] += result.hits.free_rays
            self.seen[shot.sample] += result.hits.seen_rays
        ok, data = cv2.imencode(
            ".jpg", result.image, [cv2.IMWRITE_JPEG_QUALITY, self.options.jpeg_quality]
        )
        if not ok:
            raise DataSetError(
                f"OpenCV could not encode {path} as JPEG; check that its build supports JPEG"
            )
        _save(path, data.tobytes())


def _describe(scene: Scene) -> str:
    recipe = scene.layout.recipe
    turn = {"none": "driving on", "left": "turning left", "right": "turning right"}[recipe.ego.turn]
    return f"Toy scene, {recipe.kind.replace('_', ' ')}, {recipe.light} light, {turn}"


def generate_scene(
    root: Path,
    options: Options,
    names: SceneNames,
    place: int,
    shift: np.ndarray,
    progress: Callable[[int], None],
) -> None:
    """Write all files of a scene, and last its records to `.scenes/`.

    Args:
        root: data root.
        options: parameters of the data set.
        names: names of the scene.
        place: number of the scene's map.
        shift: [2], global minus scene coordinates.
        progress: called with 1 after each key frame.
    """
    scene = make_scene(options.seed, names.index, options.duration_s)
    observed = observe(scene, options.duration_s)
    recorder = _Recorder(root, options, names, scene)
    poses = {}
    for sample in range(options.samples):
        for shot in all_shots(options):
            if shot.sample == sample:
                recorder.take(shot)
                x, y, yaw = scene.layout.ego.pose(shot.time_us * 1e-6)
                poses[names.data_token(shot)] = (x + float(shift[0]), y + float(shift[1]), yaw)
        _write_labels(root, options, names, scene, observed, sample)
        progress(1)
    times = [k * KEY_PERIOD_US * 1e-6 for k in range(options.samples)]
    boxes = annotate(scene, times, recorder.key_points, recorder.free, recorder.seen)
    categories = {k: actor.category for k, actor in enumerate(scene.actors)}
    tables = scene_tables(
        names, _describe(scene), f"toy-town-{place}", poses, boxes, categories, shift
    )
    mask = (scene.ground.classes == int(Occ.DRIVEABLE_SURFACE)).astype(np.uint8) * 255
    mask_file = f"{names.name}.png"
    write_png(root / ".scenes" / mask_file, mask)
    corner = (scene.layout.lower + shift).tolist()
    write_json(
        root / ".scenes" / f"{names.name}.json",
        dict(
            tables=tables,
            mask=dict(file=mask_file, corner=corner, size=[mask.shape[1], mask.shape[0]]),
        ),
    )
