"""Turn frames into packed samples, with the transforms of the config's test pipeline.

Legend: T frames of a sample (current first, then older), N cameras, h, w size of the network's
input, n points.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.errors import BadDataError, MissingDataError
from loaders.lidar.frames import LidarFrames
from loaders.lidar.points import LoadLidarSweeps, Points, as_points, read_lidar_points
from loaders.sample import OccSample
from loaders.transforms.decode import image_size, read_image_file
from loaders.transforms.geometry import ego2img_from_poses, image_aug_matrix
from loaders.transforms.images import DrawImageAug, LoadMultiViewImages
from loaders.transforms.labels import loads_labels
from models.errors import does_not_exist
from scripts.prediction.errors import FrameError
from scripts.prediction.frames import (
    CameraFrame,
    Frame,
    ImageSource,
    Matrix,
    PointSource,
    intrinsic_matrix,
    rigid,
    seconds,
)
from scripts.runtime.errors import ConfigError

# Carries every point to (-1, -1, 0, 1): depth 0, and far outside the image after the division.
_SEES_NOTHING = np.array([[0, 0, 0, -1], [0, 0, 0, -1], [0, 0, 0, 0], [0, 0, 0, 1]], np.float64)

# Frames of all streams of a process: features of a frame are cached under its number.
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class View:
    """One image, ready for the network, and its calibration.

    Attributes:
        image: uint8 [h, w, 3], BGR, augmented.
        intrinsics: float64 [3, 3], of the given image.
        sensor2global: float64 [4, 4] at the time of the image.
        sensor2ego: float64 [4, 4], None if only `sensor2global` is known.
        aug_matrix: float32 [4, 4], pixels of the given image to those of `image`.
        raw_hw: Height and width of the given image.
        time_us: Time at which it was taken.
    """

    image: npt.NDArray[np.uint8]
    intrinsics: Matrix
    sensor2global: Matrix
    sensor2ego: Matrix | None
    aug_matrix: npt.NDArray[np.float32]
    raw_hw: tuple[int, int]
    time_us: int

    def is_mounted_as(self, other: View) -> bool:
        """Return whether two images have the same size and calibration."""
        same = self.raw_hw == other.raw_hw and np.array_equal(self.intrinsics, other.intrinsics)
        if self.sensor2ego is None or other.sensor2ego is None:
            return same
        return same and np.array_equal(self.sensor2ego, other.sensor2ego)


@dataclass(frozen=True)
class Sweep:
    """Points of a frame's LiDAR.

    Attributes:
        points: float32 [n, 5], in the LiDAR's own frame.
        time_us: Time of the measurement.
        lidar2global: float64 [4, 4].
    """

    points: Points
    time_us: int
    lidar2global: Matrix


@dataclass(frozen=True)
class PreparedFrame:
    """A frame, as stored for later predictions.

    Attributes:
        number: Unique number.
        name: Name given by the user.
        time_us: Time in microseconds.
        ego2global: float64 [4, 4].
        lidar2ego: float64 [4, 4].
        views: Images of the N cameras in the model's order; None for a missing image.
        dropped: Cameras without an image, to the age in seconds of the older image that replaces
            it, or None if there is none.
        changed: Cameras whose calibration or image size differs from the frame before.
    """

    number: int
    name: str
    time_us: int
    ego2global: Matrix
    lidar2ego: Matrix
    views: tuple[View | None, ...]
    dropped: Mapping[str, float | None]
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Place of a prediction in its stream, for models that keep queries between predictions.

    Attributes:
        sequence: Unique number of the sequence of predictions.
        index: Number of predictions before it in the sequence.
    """

    sequence: int
    index: int


class FramePreparer:
    """Check frames, and turn them into samples as a data set does.

    The last image of every camera is kept to replace a missing one. The points of the last frames
    are kept as well.

    Args:
        dataset: Data set of the config, see `scripts.prediction.model.unread_dataset`.
        max_stand_in_age_s: Largest age in seconds of an image that replaces a missing one.

    Raises:
        ConfigError: The test pipeline lacks a step, or the age is invalid.
    """

    def __init__(self, dataset: OccupancyDataset, max_stand_in_age_s: float = 1.0) -> None:
        if not isinstance(max_stand_in_age_s, (int, float)) or not max_stand_in_age_s >= 0:
            raise ConfigError(f"max_stand_in_age_s is {max_stand_in_age_s}: give seconds from 0 on")
        self._dataset = dataset
        self._max_age_us = max_stand_in_age_s * 1e6
        self.cameras = tuple(dataset.cameras)
        self._steps: Sequence[Any] = dataset.pipeline.transforms
        self._draw = self._step(DrawImageAug)
        self._load = self._step(LoadMultiViewImages)
        sweeps = [step for step in self._steps if isinstance(step, LoadLidarSweeps)]
        self._lidar: LoadLidarSweeps | None = sweeps[0] if sweeps and dataset.use_lidar else None
        self._last: dict[str, View] = {}
        self._sweeps: deque[Sweep] = deque(maxlen=self._lidar.num_sweeps if self._lidar else 0)

    def _step(self, kind: type[Any]) -> Any:
        for step in self._steps:
            if isinstance(step, kind):
                return step
        raise ConfigError(
            f"the test pipeline of the config has no {kind.__name__}, which frames are prepared "
            "with: put it into the pipeline"
        )

    def clear(self) -> None:
        """Clear all images and points."""
        self._last.clear()
        self._sweeps.clear()

    def keep(self, current: PreparedFrame, sweep: Sweep | None) -> None:
        """Store the images and the points of a frame for later frames."""
        for name, view in zip(self.cameras, current.views, strict=True):
            if view is not None and name not in current.dropped:
                self._last[name] = view
        if sweep is not None:
            self._sweeps.append(sweep)

    def prepare(self, frame: Frame) -> PreparedFrame:
        """Decode and augment the images of a frame, and check its calibration.

        Raises:
            FrameError: A calibration or an image is invalid, a camera is unknown, or none has an
                image; the message names the camera.
            MissingDataError: A file does not exist.
            BadDataError: A file is broken.
        """
        time_us = seconds(frame.time_s, f"time_s of {frame.label}")
        ego2global = _pose_or_identity(frame.ego2global, f"ego2global of {frame.label}")
        given = self._given_cameras(frame)
        views: list[View | None] = []
        dropped: dict[str, float | None] = {}
        changed: list[str] = []
        for name in self.cameras:
            before = self._last.get(name)
            camera = given.get(name)
            if camera is not None:
                view = self._view(camera, f"camera {name} of {frame.label}", ego2global, time_us)
                views.append(view)
                if before is not None and not view.is_mounted_as(before):
                    changed.append(name)
                continue
            # Of two images the older one; there is none after a reset.
            age_us = time_us - before.time_us if before is not None else -1
            usable = before is not None and 0 <= age_us <= self._max_age_us
            views.append(before if usable else None)
            dropped[name] = age_us * 1e-6 if usable else None
        if not any(views):
            raise FrameError(
                f"{frame.label} has an image of none of the cameras {', '.join(self.cameras)}, and "
                "no earlier one replaces them: give at least one"
            )
        lidar2ego = _pose_or_identity(frame.lidar2ego, f"lidar2ego of {frame.label}")
        return PreparedFrame(
            next(_NUMBERS),
            frame.name,
            time_us,
            ego2global,
            lidar2ego,
            tuple(views),
            dropped,
            tuple(changed),
        )

    def _given_cameras(self, frame: Frame) -> dict[str, CameraFrame]:
        if not isinstance(frame.cameras, Mapping):
            raise FrameError(
                f"cameras of {frame.label} is a {type(frame.cameras).__name__}, expected a dict "
                "from camera names to CameraFrame"
            )
        for name, camera in frame.cameras.items():
            if name not in self.cameras:
                near = get_close_matches(str(name), self.cameras, n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise FrameError(
                    f"{frame.label} has a camera '{name}'{hint}, but the cameras of this rig are "
                    f"{', '.join(self.cameras)}: rename it, or give the names of another rig as "
                    "OccupancyInferencer(..., cameras=[...]) or reset(cameras=[...])"
                )
            if camera is not None and not isinstance(camera, CameraFrame):
                raise FrameError(
                    f"camera {name} of {frame.label} is a {type(camera).__name__}, expected a "
                    "CameraFrame, or None where it gave no image"
                )
        return {name: camera for name, camera in frame.cameras.items() if camera is not None}

    def _view(self, camera: CameraFrame, what: str, ego2global: Matrix, time_us: int) -> View:
        intrinsics = intrinsic_matrix(camera.intrinsics, f"intrinsics of {what}")
        sensor2ego = None
        if camera.sensor2ego is not None:
            sensor2ego = rigid(camera.sensor2ego, f"sensor2ego of {what}")
        if camera.sensor2global is not None:
            sensor2global = rigid(camera.sensor2global, f"sensor2global of {what}")
        elif sensor2ego is not None:
            own = camera.ego2global
            vehicle = ego2global if own is None else rigid(own, f"ego2global of {what}")
            sensor2global = vehicle @ sensor2ego
        else:
            raise FrameError(
                f"{what} has neither sensor2ego nor sensor2global: give its mounting [4, 4] as "
                "sensor2ego"
            )
        source, raw_hw = _read_image(camera, what)
        aug = self._draw.fixed_for(raw_hw)
        is_file = isinstance(camera.image, (str, os.PathLike))
        name = f"{os.fspath(camera.image)} of {what}" if is_file else f"of {what}"  # type: ignore[arg-type]
        with _named_camera(what):
            image = self._load.finish(source, aug, name)
        taken = time_us if camera.time_s is None else seconds(camera.time_s, f"time_s of {what}")
        return View(
            image, intrinsics, sensor2global, sensor2ego, image_aug_matrix(aug), raw_hw, taken
        )

    def points(self, current: PreparedFrame, frame: Frame) -> Sweep | None:
        """Return the points of a frame's LiDAR; None if it has none or they are not used."""
        if self._lidar is None or frame.lidar is None:
            return None
        if frame.lidar2ego is None:
            raise FrameError(
                f"{frame.label} has lidar points and no lidar2ego: give the mounting of the LiDAR "
                "[4, 4]"
            )
        points = self._read_points(frame.lidar, f"lidar of {frame.label}")
        return Sweep(points, current.time_us, current.ego2global @ current.lidar2ego)

    def pack(
        self,
        chosen: Sequence[PreparedFrame],
        frame: Frame,
        sweep: Sweep | None,
        place: Place | None = None,
    ) -> dict[str, Any]:
        """Return a packed sample, see `PackOccSample`.

        Args:
            chosen: T frames, the current one first.
            frame: The current frame as given by the user.
            sweep: Points of the current frame.
            place: Position of the prediction in its stream; None for a single prediction.

        Raises:
            FrameError: The frame lacks points or a mounting that the model needs.
        """
        current = chosen[0]
        if frame.lidar2ego is None and self._dataset.occ_frame == "lidar":
            raise FrameError(
                f"{frame.label} has no lidar2ego, and the grid of this model is in the LiDAR's "
                "frame: give the mounting of the LiDAR [4, 4], or of where it would be"
            )
        views = [view for each in chosen for view in each.views]
        ego2img = self._ego2img(current, views)
        dataset = self._dataset
        ego2occ = np.eye(4)
        if dataset.occ_frame == "lidar":
            ego2occ = np.linalg.inv(current.lidar2ego)
        blank = np.zeros((*self._draw.fixed_for().size_hw, 3), dtype=np.uint8)
        keys = [f"frame {each.number}/{name}" for each in chosen for name in self.cameras]
        sample = OccSample(
            sample_idx=current.number,
            sample_token=current.name or str(current.number),
            scene_name="",
            scene_token="",
            lidar_token="",
            cameras=self.cameras,
            data_root="",
            img_paths=keys,
            img_timestamps=np.array(
                [current.time_us if view is None else view.time_us for view in views], np.int64
            ),
            ego2img=ego2img,
            pc_range=dataset.pc_range,
            voxel_size=dataset.voxel_size,
            class_names=dataset.class_names,
            frame_index=0 if place is None else place.index,
            sequence_id=None if place is None else place.sequence,
            timestamp=current.time_us,
            ego2global=current.ego2global.copy(),
            ego2occ=ego2occ,
            lidar2ego=current.lidar2ego.copy(),
        )
        item: Any = sample
        for step in self._steps:
            if step is self._draw:
                item.image_aug = self._draw.fixed_for()
            elif step is self._load:
                item.images = np.stack([blank if view is None else view.image for view in views])
            elif step is self._lidar:
                item = self._with_points(item, sweep, frame)
            elif not loads_labels(type(step).__name__):
                item = step(item)
        packed: dict[str, Any] = item
        return packed

    def _ego2img(self, current: PreparedFrame, views: Sequence[View | None]) -> Matrix:
        """Return float64 [T*N, 4, 4], ego frame of the current frame to augmented pixels."""
        stand_in = next(view for view in views if view is not None)
        known = [stand_in if view is None else view for view in views]
        sensor2global = np.array([view.sensor2global for view in known])
        ego2img = ego2img_from_poses(
            current.ego2global[:3, :3],
            current.ego2global[:3, 3],
            sensor2global[:, :3, :3],
            sensor2global[:, :3, 3],
            np.array([view.intrinsics for view in known]),
        )
        matrices = np.array([view.aug_matrix for view in known], dtype=np.float64)
        ego2img = matrices @ ego2img
        for i, view in enumerate(views):
            if view is None:
                ego2img[i] = _SEES_NOTHING
        return ego2img

    def _with_points(self, sample: OccSample, own: Sweep | None, frame: Frame) -> OccSample:
        """Set the points of the current and of earlier frames."""
        assert self._lidar is not None
        if own is None:
            raise FrameError(
                f"{frame.label} has no lidar points, and the model fuses LiDAR: give points [n, 5] "
                "as lidar and the mounting [4, 4] as lidar2ego (in a folder: the key lidar of "
                "rig.yaml)"
            )
        if frame.lidar_sweeps is None:
            older = list(self._sweeps)[::-1]
            times = [sweep.time_us for sweep in older]
            to_current = np.linalg.inv(own.lidar2global)
            matrices = [to_current @ sweep.lidar2global for sweep in older]
            points = [sweep.points for sweep in older]
        else:
            given = frame.lidar_sweeps[: self._lidar.num_sweeps]
            names = [f"LiDAR sweep {i} of {frame.label}" for i in range(len(given))]
            pairs = list(zip(given, names, strict=True))
            times = [seconds(sweep.time_s, f"time_s of {name}") for sweep, name in pairs]
            matrices = [rigid(each.sensor2lidar, f"sensor2lidar of {name}") for each, name in pairs]
            points = [self._read_points(sweep.points, name) for sweep, name in pairs]
        every = [own.points, *points]
        sample.lidar = LidarFrames(
            [""] * len(every),
            np.array([own.time_us, *times], dtype=np.int64),
            np.array([np.eye(4), *matrices]),
        )
        sample.points = self._lidar.gather(
            sample.lidar, sample.lidar2occ, lambda _, row: every[row]
        )
        return sample

    def _read_points(self, source: PointSource, what: str) -> Points:
        assert self._lidar is not None
        if isinstance(source, (str, os.PathLike)):
            return read_lidar_points(os.fspath(source), self._lidar.load_dim)
        return as_points(source, what)


def _pose_or_identity(values: npt.ArrayLike | None, what: str) -> Matrix:
    return np.eye(4) if values is None else rigid(values, what)


def _read_image(
    camera: CameraFrame, what: str
) -> tuple[bytes | bytearray | npt.NDArray[np.uint8], tuple[int, int]]:
    """Return the content of an image file or BGR pixels, and height and width."""
    source: ImageSource = camera.image
    if isinstance(source, np.ndarray):
        pixels = _bgr_pixels(source, camera.channel_order, what)
        return pixels, (pixels.shape[0], pixels.shape[1])
    if isinstance(source, (bytes, bytearray, memoryview)):
        data: bytes | bytearray = bytes(source)
        with _named_camera(what):
            return data, image_size(data, f"of {what}")
    if not isinstance(source, (str, os.PathLike)):
        raise FrameError(
            f"the image of {what} is a {type(source).__name__}, expected a path, the bytes of an "
            "image file, or a uint8 array [H, W, 3]; leave a camera without an image out of the "
            "frame"
        )
    path = os.fspath(source)
    if os.path.isdir(path):
        raise FrameError(f"the image of {what}, {path}, is a folder: name a file in it")
    try:
        with _named_camera(what):
            data = read_image_file(path)
            return data, image_size(data, path)
    except MissingDataError as error:
        raise MissingDataError(
            f"the image of {what}, {does_not_exist(path)}: correct the path, or leave the camera "
            "out of the frame"
        ) from error


@contextmanager
def _named_camera(what: str) -> Iterator[None]:
    """Raise errors about broken images that name the camera and a solution for users of frames."""
    try:
        yield
    except BadDataError as error:
        problem = str(error).rpartition(": ")[0]
        place = "" if what in problem else f"{what}: "
        raise type(error)(
            f"{place}{problem}: give the whole file, or leave the camera out of the frame"
        ) from error


def _bgr_pixels(
    pixels: npt.NDArray[np.uint8], order: str | None, what: str
) -> npt.NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise FrameError(
            f"the image of {what} is {pixels.dtype} {list(pixels.shape)}, expected uint8 [H, W, 3]"
        )
    if order not in ("bgr", "rgb"):
        raise FrameError(
            f"the image of {what} is an array and its channel_order is {order!r}: give 'bgr' "
            "(OpenCV) or 'rgb' (Pillow)"
        )
    return np.ascontiguousarray(pixels if order == "bgr" else pixels[:, :, ::-1])
