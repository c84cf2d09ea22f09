"""Rerun recording of a scene: cameras, LiDAR, voxels, query points and the ego track on a timeline.

Open it with `rerun FILE.rrd` (the viewer comes with the package rerun-sdk).

Entities, with the project's transforms (ego: x forward, y left, z up, metres)::

    world                              the map, with its origin at the start of the scene
    world/track                        the vehicle's path, with the sample positions
    world/ego                          the vehicle; below it:
      cameras/<name>                   pinhole and image
      lidar                            points of the key frame
      grid/prediction/<class>          surface voxels as boxes; also ground_truth and difference
      grid/queries/<layer>/points      predictions of the queries, coarse to fine
      grid/queries/<layer>/centres     the mean of each query's points
    scores/<metric>                    scores of each sample

Dimension letters: Q queries, R points of a query, n points, S surface voxels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.runtime.atomic_write import write_atomically
from scripts.runtime.errors import ConfigError
from scripts.visualization.difference import difference_colours, difference_grid
from scripts.visualization.ego_car import car_faces
from scripts.visualization.job import Job
from scripts.visualization.palette import (
    DIFFERENCE_COLOURS,
    EGO_COLOUR,
    Difference,
    class_colours,
    pretty_name,
)
from scripts.visualization.recording_layout import camera_entity, layout
from scripts.visualization.sample_view import CameraImage, SampleView
from scripts.visualization.surface import surface_voxels

# Class ids of a recording: first the data set's classes, then the kinds of difference.
_DIFFERENCE_IDS = 1000
_JPEG_QUALITY = 85
# Coarse to fine, from the dark (blue) to the bright (yellow) end of matplotlib's plasma.
_LAYER_COLOUR_MAP = "plasma"


def write(job: Job) -> list[Path]:
    """Write one recording per scene.

    Raises:
        ConfigError: rerun-sdk is not installed.
    """
    rr = _rerun()
    files = []
    for scene, indices in job.clips():
        path = job.file(f"{scene}.rrd")

        def record(file: Path, scene: str = scene, indices: list[int] = indices) -> None:
            recorder = _Recorder(rr, job, scene, indices, file)
            try:
                for number, index in enumerate(tqdm(indices, desc=f"{scene}.rrd", unit="sample")):
                    recorder.add(number, job.source.view(index))
            finally:
                recorder.close()

        write_atomically(path, record)
        size = path.stat().st_size / 2**20
        job.report(f"{path}  ({len(indices)} samples, {size:.1f} MiB; open it with: rerun {path})")
        files.append(path)
    return files


def _rerun() -> Any:
    try:
        import rerun
    except ImportError as error:
        raise ConfigError(
            "--format rrd needs the package rerun-sdk in the version of requirements/packages.txt: "
            "run make setup"
        ) from error
    return rerun


class _Recorder:
    """Recorder of samples into a file.

    Args:
        rr: the module rerun.
        job: the job.
        scene: name of the scene.
        indices: indices of the samples to come.
        path: output file.
    """

    def __init__(self, rr: Any, job: Job, scene: str, indices: Sequence[int], path: Path) -> None:
        self._rr = rr
        self._stream = rr.new_recording(job.title, recording_id=f"{job.title}/{scene}")
        self._stream.save(str(path))
        self._palette = job.options.palette
        self._alive: set[str] = set()
        self._cameras: list[str] = []
        self._shown: set[str] = set()
        moments = [job.source.moment(index) for index in indices]
        self._start_us = moments[0].time_us
        # Viewers compute in float32, so large map coordinates are avoided.
        self._origin = moments[0].ego2global[:3, 3].copy()
        self._log("world", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        track = np.stack([moment.ego2global[:3, 3] - self._origin for moment in moments])
        self._log("world/track", rr.LineStrips3D([track], radii=0.12, colors=[EGO_COLOUR]), True)
        self._log("world/track/stations", rr.Points3D(track, radii=0.3, colors=[EGO_COLOUR]), True)
        self._log("world/ego/vehicle", _car(rr), static=True)

    def _log(self, entity: str, content: Any, static: bool = False) -> None:
        self._stream.log(entity, content, static=static)

    def add(self, number: int, view: SampleView) -> None:
        """Log one sample at its place on the timelines `sample` and `time`."""
        rr = self._rr
        if not self._shown:
            self._annotate(view.class_names)
        self._stream.set_time_sequence("sample", number)
        self._stream.set_time_seconds("time", (view.time_us - self._start_us) * 1e-6)
        ego2world = view.ego2global.copy()
        ego2world[:3, 3] -= self._origin
        self._log("world/ego", _transform(rr, ego2world))
        self._log("world/ego/grid", _transform(rr, np.linalg.inv(view.ego2grid)))
        for camera in view.images:
            self._add_camera(camera)
        if view.lidar is not None:
            self._shown.add("lidar")
            colours = _colour_map("viridis", (view.lidar[:, 2] + 2.0) / 6.0)
            self._log("world/ego/lidar", rr.Points3D(view.lidar, colors=colours, radii=0.04))
        self._add_grids(view)
        if view.queries is not None:
            self._shown.add("queries")
            layers = [view.queries.initial, *view.queries.layers]
            for i, points in enumerate(layers):
                self._add_layer(i, len(layers), points)
        for name, value in view.scores:
            self._shown.add("scores")
            self._log(f"scores/{name.replace(' ', '_')}", rr.Scalar(value))

    def _annotate(self, class_names: Sequence[str]) -> None:
        """Log names and colours of the classes, which are shown on hovering."""
        rows = [
            (i, pretty_name(name), tuple(map(int, colour)))
            for i, (name, colour) in enumerate(
                zip(class_names, class_colours(class_names, self._palette), strict=True)
            )
        ]
        kinds = [
            (_DIFFERENCE_IDS + i, name, colour)
            for i, (name, colour) in enumerate(DIFFERENCE_COLOURS.items())
        ]
        self._log("/", self._rr.AnnotationContext([*rows, *kinds]), static=True)

    def _add_camera(self, camera: CameraImage) -> None:
        rr, entity = self._rr, camera_entity(camera.name)
        if entity not in self._cameras:
            self._cameras.append(entity)
        if camera.ego2img is not None:
            intrinsic, ego2cam = split_projection(camera.ego2img[:3])
            self._log(entity, _transform(rr, np.linalg.inv(ego2cam)))
            self._log(
                entity,
                rr.Pinhole(
                    image_from_camera=intrinsic,
                    resolution=camera.image.size,
                    image_plane_distance=3.0,
                ),
            )
        encoded = io.BytesIO()
        camera.image.convert("RGB").save(encoded, "JPEG", quality=_JPEG_QUALITY)
        image = rr.EncodedImage(contents=encoded.getvalue(), media_type="image/jpeg")
        self._log(entity, image)

    def _add_grids(self, view: SampleView) -> None:
        colours = class_colours(view.class_names, self._palette)
        names = [pretty_name(name) for name in view.class_names]
        for kind, grid in (("prediction", view.prediction), ("ground_truth", view.truth)):
            if grid is not None:
                self._add_grid(kind, view, grid, names, colours, 0)
        if view.prediction is not None and view.truth is not None:
            grid = difference_grid(view.prediction, view.truth, view.empty_label, view.scored)
            kinds = list(DIFFERENCE_COLOURS)
            assert len(kinds) == Difference.FREE
            self._add_grid("difference", view, grid, kinds, difference_colours(), _DIFFERENCE_IDS)

    def _add_grid(
        self,
        kind: str,
        view: SampleView,
        grid: NDArray[np.uint8],
        names: Sequence[str],
        colours: NDArray[np.uint8],
        first_id: int,
    ) -> None:
        """Log boxes of one label grid, one entity per class, so that each can be hidden."""
        rr = self._rr
        self._shown.add(kind)
        voxels = surface_voxels(grid < len(names))
        labels = grid[tuple(voxels.T)]
        size = np.asarray(view.voxel_size)
        centres = (voxels + 0.5) * size + np.asarray(view.grid_min)
        for label, name in enumerate(names):
            entity = f"world/ego/grid/{kind}/{name.replace(' ', '_')}"
            chosen = centres[labels == label].astype(np.float32)
            if len(chosen):
                boxes = rr.Boxes3D(
                    centers=chosen,
                    half_sizes=np.broadcast_to(0.5 * size, chosen.shape),
                    colors=[colours[label]],
                    class_ids=[first_id + label],
                    fill_mode="solid",
                    show_labels=False,  # otherwise classes with few boxes are always labelled
                )
                self._log(entity, boxes)
                self._alive.add(entity)
            elif entity in self._alive:  # removes the boxes of the previous sample
                self._log(entity, rr.Clear(recursive=False))
                self._alive.remove(entity)

    def _add_layer(self, number: int, count: int, points: NDArray[np.float32]) -> None:
        """Log points [Q, R, 3] after one decoder layer (0: the start) and their centres."""
        rr = self._rr
        colour = _colour_map(_LAYER_COLOUR_MAP, np.array([0.15 + 0.8 * number / max(count - 1, 1)]))
        name = "initial" if number == 0 else f"layer_{number}"
        entity = f"world/ego/grid/queries/{name}"
        radius = 0.22 - 0.12 * number / max(count - 1, 1)
        flat = points.reshape(-1, 3)
        self._log(f"{entity}/points", rr.Points3D(flat, colors=colour, radii=radius))
        centres = points.mean(axis=1)
        self._log(f"{entity}/centres", rr.Points3D(centres, colors=colour, radii=2.0 * radius))

    def close(self) -> None:
        """Add the layout, which depends on the contents, and finish the file."""
        self._stream.send_blueprint(layout(self._cameras, self._shown))
        self._stream.flush(blocking=True)
        self._rr.disconnect(recording=self._stream)


def _car(rr: Any) -> Any:
    """Return the ego car as a mesh: two triangles per face of its voxels, smoothly shaded."""
    car = car_faces()
    axis, level = car.faces // 2, car.faces % 2
    count = len(car.cells)
    corners = np.zeros((count, 4, 3))
    corners[:] = car.cells[:, None]
    rows = np.arange(count)
    corners[rows, :, axis] += level[:, None]
    for corner, (u, v) in enumerate(((0, 0), (1, 0), (1, 1), (0, 1))):
        corners[rows, corner, (axis + 1) % 3] += u
        corners[rows, corner, (axis + 2) % 3] += v
    first = 4 * rows[:, None]
    return rr.Mesh3D(
        vertex_positions=corners.reshape(-1, 3) * car.voxel_m + np.asarray(car.grid_min),
        triangle_indices=(first + np.array([[0, 1, 2, 0, 2, 3]])).reshape(-1, 3),
        vertex_normals=car.normals.repeat(4, axis=0),
        vertex_colors=car.colours[car.labels].repeat(4, axis=0),
    )


def _transform(rr: Any, matrix: NDArray[np.float64]) -> Any:
    return rr.Transform3D(translation=matrix[:3, 3], mat3x3=matrix[:3, :3])


def _colour_map(name: str, values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the colours [n, 3] of values [n] in the range 0 to 1."""
    from matplotlib import colormaps

    colours: NDArray[np.uint8] = colormaps[name](np.clip(values, 0, 1), bytes=True)[:, :3]
    return colours


def split_projection(
    projection: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Split a projection into the intrinsic matrix and pose of a pinhole camera.

    Args:
        projection: [3, 4] metres of a frame to (u*w, v*w, w).

    Returns:
        [3, 3] upper triangular with a positive diagonal, the last element 1; and [4, 4] from the
        frame to the camera (x right, y down, z forward).
    """
    from scipy.linalg import rq

    intrinsic, rotation = rq(projection[:, :3])
    signs = np.sign(np.diag(intrinsic))
    intrinsic, rotation = intrinsic * signs, signs[:, None] * rotation
    pose = np.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = np.linalg.solve(intrinsic, projection[:, 3])
    return intrinsic / intrinsic[2, 2], pose
