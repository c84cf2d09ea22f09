"""Parameters of the generator, and the resulting time table."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from scripts.runtime.errors import ConfigError
from scripts.toy_nuscenes.rig import CAMERAS, LIDAR_NAME

GENERATOR_VERSION = 2
"""Increase this if the same options result in other files; old data sets are then recognised."""

KEY_PERIOD_US = 500_000
CAMERA_SHOTS_PER_KEY = 6
LIDAR_RATES_HZ = (2, 4, 10, 20)

MINI_TRAIN = (
    "scene-0061",
    "scene-0553",
    "scene-0655",
    "scene-0757",
    "scene-0796",
    "scene-1077",
    "scene-1094",
    "scene-1100",
)
MINI_VAL = ("scene-0103", "scene-0916")


@dataclass(frozen=True)
class Options:
    """Parameters that determine the data set completely.

    scenes: number of scenes; up to 10 have the names of the nuScenes mini split (8 train, 2 val),
    more have names of trainval. samples: key frames per scene. width, height: image size in
    pixels. seed: seed of all randomness.
    lidar_hz: LiDAR sweeps per second (nuScenes: 20). lidar_azimuths: firings per turn (nuScenes:
    about 1080).
    jpeg_quality: 1 to 100.
    """

    scenes: int = 10
    samples: int = 8
    width: int = 400
    height: int = 225
    seed: int = 0
    lidar_hz: int = 4
    lidar_azimuths: int = 360
    jpeg_quality: int = 86

    def __post_init__(self) -> None:
        if not 1 <= self.scenes <= 850:
            raise ConfigError(f"--scenes must lie between 1 and 850, got {self.scenes}")
        if not 1 <= self.samples <= 200:
            raise ConfigError(f"--samples must lie between 1 and 200, got {self.samples}")
        if min(self.width, self.height) < 16:
            raise ConfigError(
                f"--image-size must be at least 16x16, got {self.width}x{self.height}"
            )
        if self.lidar_hz not in LIDAR_RATES_HZ:
            raise ConfigError(f"--lidar-hz must be one of {LIDAR_RATES_HZ}, got {self.lidar_hz}")
        if self.lidar_azimuths < 8:
            raise ConfigError(f"--lidar-azimuths must be at least 8, got {self.lidar_azimuths}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"--jpeg-quality must lie between 1 and 100, got {self.jpeg_quality}")
        if self.seed < 0:
            raise ConfigError(f"--seed must not be negative, got {self.seed}")

    @property
    def version(self) -> str:
        """Name of the table folder."""
        return "v1.0-mini" if self.scenes <= 10 else "v1.0-trainval"

    @property
    def duration_s(self) -> float:
        """Time between the first and the last key frame."""
        return (self.samples - 1) * KEY_PERIOD_US * 1e-6

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    def as_dict(self) -> dict[str, int]:
        """Return all parameters and the generator's version, for the record in the data set."""
        return {**asdict(self), "generator_version": GENERATOR_VERSION}

    def scene_names(self) -> list[str]:
        """Return the names of the scenes; four of five belong to the training split."""
        if self.scenes <= 10:
            train = max(1, min(round(self.scenes * 0.8), self.scenes - 1))
            return [*MINI_TRAIN[:train], *MINI_VAL[: self.scenes - train]]
        from nuscenes.utils.splits import train as train_names
        from nuscenes.utils.splits import val as val_names

        count = min(round(self.scenes * 0.8), len(train_names))
        return [*train_names[:count], *val_names[: self.scenes - count]]


@dataclass(frozen=True)
class Shot:
    """Measurement of a sensor. `time_us` counts from the first key frame of the scene."""

    sensor: str
    time_us: int
    is_key: bool
    sample: int  # index of its key frame


def _sample_of(time_us: int, samples: int) -> int:
    """Return the key frame of a measurement: the next one, as in nuScenes."""
    return min(max(-(-time_us // KEY_PERIOD_US), 0), samples - 1)


def camera_shots(options: Options, sensor: str, trigger_offset_us: int) -> list[Shot]:
    """Return the images of a camera at 12 Hz; every sixth belongs to a key frame."""
    out = []
    for k in range((options.samples - 1) * CAMERA_SHOTS_PER_KEY + 1):
        nominal = round(k * KEY_PERIOD_US / CAMERA_SHOTS_PER_KEY)
        key = k % CAMERA_SHOTS_PER_KEY == 0
        out.append(
            Shot(sensor, nominal + trigger_offset_us, key, _sample_of(nominal, options.samples))
        )
    return out


def lidar_shots(options: Options) -> list[Shot]:
    """Return the LiDAR sweeps; sweeps at the times of key frames are key frames."""
    per_key = options.lidar_hz // 2
    out = []
    for k in range((options.samples - 1) * per_key + 1):
        time_us = k * KEY_PERIOD_US // per_key
        out.append(
            Shot(LIDAR_NAME, time_us, k % per_key == 0, _sample_of(time_us, options.samples))
        )
    return out


def all_shots(options: Options) -> list[Shot]:
    """Return all measurements of a scene, ordered by sensor, then by time."""
    cameras = [
        shot
        for camera in CAMERAS
        for shot in camera_shots(options, camera.name, camera.trigger_offset_us)
    ]
    return [*cameras, *lidar_shots(options)]
