"""Write info files (poses, calibration, camera and LiDAR sweeps per key frame) from nuScenes.

    python scripts/gen_sweep_info.py --data-root data/nuscenes --version v1.0-trainval

Reads the nuScenes tables only (no images) and writes ``nuscenes_infos_{train,val}_sweep.pkl``
(v1.0-trainval), ``nuscenes_infos_test_sweep.pkl`` (v1.0-test) or
``nuscenes_infos_{train,val}_mini_sweep.pkl`` (v1.0-mini) into the data root. Paths are relative to
it, so the data set may move. Readers: ``loaders/info_io.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from loaders.errors import BadDataError, MissingDataError
from loaders.info_io import CAMERAS, save_infos
from loaders.transforms.geometry import quaternion_to_matrix
from scripts.runtime.errors import run_entry_point

# Info file names and devkit splits by nuScenes version.
SPLITS = {
    "v1.0-trainval": {"train": "train", "val": "val"},
    "v1.0-test": {"test": "test"},
    "v1.0-mini": {"train_mini": "mini_train", "val_mini": "mini_val"},
}
MAX_CAM_SWEEPS = 5
MAX_LIDAR_SWEEPS = 10

Record = Mapping[str, Any]
Matrix = npt.NDArray[np.float64]


class SceneReader:
    """Makes the infos of scenes from the tables.

    Args:
        nusc: An opened ``nuscenes.NuScenes``.
    """

    def __init__(self, nusc: Any) -> None:
        self._nusc = nusc

    def infos(self, scene: Record) -> list[dict[str, Any]]:
        """Returns the infos of a scene's key frames, in time order."""
        return [self._info(scene, sample) for sample in self._samples(scene)]

    def _samples(self, scene: Record) -> Iterator[Record]:
        token = scene["first_sample_token"]
        while token:
            sample = self._nusc.get("sample", token)
            yield sample
            token = sample["next"]

    def _info(self, scene: Record, sample: Record) -> dict[str, Any]:
        missing = [name for name in (*CAMERAS, "LIDAR_TOP") if name not in sample["data"]]
        if missing:
            raise BadDataError(
                f"key frame {sample['token']} of {scene['name']} has no {missing[0]} in the "
                "nuScenes tables: restore the tables from the original archive"
            )
        lidar = self._nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        mount = self._nusc.get("calibrated_sensor", lidar["calibrated_sensor_token"])
        pose = self._nusc.get("ego_pose", lidar["ego_pose_token"])
        cams = {name: self._nusc.get("sample_data", sample["data"][name]) for name in CAMERAS}
        is_first = sample["prev"] == ""
        return {
            "token": sample["token"],
            "scene_name": scene["name"],
            "scene_token": scene["token"],
            "lidar_token": lidar["token"],
            "timestamp": sample["timestamp"],
            "lidar_path": lidar["filename"],
            "lidar2ego_translation": list(mount["translation"]),
            "lidar2ego_rotation": list(mount["rotation"]),
            "ego2global_translation": list(pose["translation"]),
            "ego2global_rotation": list(pose["rotation"]),
            "cams": {name: self._camera(data) for name, data in cams.items()},
            "cam_sweeps": [] if is_first else self._camera_sweeps(cams),
            "lidar_sweeps": self._lidar_sweeps(lidar),
        }

    def _sensor2global(self, sample_data: Record) -> tuple[Matrix, Matrix]:
        """Returns R [3, 3] and t [3] with p_global = R @ p_sensor + t, metres."""
        mount = self._nusc.get("calibrated_sensor", sample_data["calibrated_sensor_token"])
        pose = self._nusc.get("ego_pose", sample_data["ego_pose_token"])
        ego2global = quaternion_to_matrix(pose["rotation"])
        rotation = ego2global @ quaternion_to_matrix(mount["rotation"])
        translation = ego2global @ np.array(mount["translation"]) + np.array(pose["translation"])
        return rotation, translation

    def _camera(self, sample_data: Record) -> dict[str, Any]:
        mount = self._nusc.get("calibrated_sensor", sample_data["calibrated_sensor_token"])
        rotation, translation = self._sensor2global(sample_data)
        return {
            "data_path": sample_data["filename"],
            "timestamp": sample_data["timestamp"],
            "cam_intrinsic": np.array(mount["camera_intrinsic"], dtype=np.float64),
            # Transposed: the format multiplies row vectors from the left.
            "sensor2global_rotation": np.ascontiguousarray(rotation.T),
            "sensor2global_translation": translation,
        }

    def _previous_sweeps(self, sample_data: Record, limit: int) -> list[Record]:
        """Returns up to ``limit`` sweeps since the previous key frame, newest first."""
        sweeps: list[Record] = []
        token = sample_data["prev"]
        while token and len(sweeps) < limit:
            record = self._nusc.get("sample_data", token)
            if record["is_key_frame"]:
                break
            sweeps.append(record)
            token = record["prev"]
        return sweeps

    def _camera_sweeps(self, cams: Mapping[str, Record]) -> list[dict[str, Any]]:
        """Returns the sweeps before a key frame, newest first, with all cameras each.

        Cameras drop frames one by one; a sweep that lacks one repeats the sweep before it. Sweeps
        that have no complete one before them are left out.
        """
        chains = {name: self._previous_sweeps(data, MAX_CAM_SWEEPS) for name, data in cams.items()}
        sweeps: list[dict[str, Any]] = []
        for i in range(max(map(len, chains.values()))):
            if all(i < len(chain) for chain in chains.values()):
                sweeps.append({name: self._camera(chain[i]) for name, chain in chains.items()})
            elif sweeps:
                sweeps.append(sweeps[-1])
        return sweeps

    def _lidar_sweeps(self, key: Record) -> list[dict[str, Any]]:
        """Returns the LiDAR sweeps before a key frame, newest first (key frames among them)."""
        key_rotation, key_translation = self._sensor2global(key)
        sweeps: list[dict[str, Any]] = []
        token = key["prev"]
        while token and len(sweeps) < MAX_LIDAR_SWEEPS:
            record = self._nusc.get("sample_data", token)
            rotation, translation = self._sensor2global(record)
            sweeps.append(
                {
                    "data_path": record["filename"],
                    "timestamp": record["timestamp"],
                    "sensor2lidar_rotation": key_rotation.T @ rotation,
                    "sensor2lidar_translation": key_rotation.T @ (translation - key_translation),
                }
            )
            token = record["prev"]
        return sweeps


def open_tables(data_root: Path, version: str) -> Any:
    """Opens the tables of a nuScenes folder.

    Raises:
        MissingDataError: If the folder, or the version's tables, do not exist.
        BadDataError: If a table is missing or broken.
    """
    if not data_root.is_dir():
        raise MissingDataError(
            f"data root {data_root} does not exist: put (or link) nuScenes there, or make a toy "
            "data set with scripts/make_toy_nuscenes.py"
        )
    if not (data_root / version).is_dir():
        found = sorted(path.name for path in data_root.glob("v1.0-*") if path.is_dir())
        raise MissingDataError(
            f"{data_root / version} does not exist: choose --version from what is there "
            f"({', '.join(found) or 'no nuScenes tables'})"
        )
    from nuscenes import NuScenes  # slow to import, and not needed to report the errors above

    try:
        return NuScenes(version=version, dataroot=str(data_root), verbose=False)
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise BadDataError(
            f"the tables in {data_root / version} cannot be read ({error}): restore them from the "
            "original archive"
        ) from error


def write_split(nusc: Any, split: str, path: Path, progress: bool = True) -> tuple[int, int]:
    """Writes the info file of a split.

    Args:
        nusc: An opened ``nuscenes.NuScenes``.
        split: Name within ``nuscenes.utils.splits`` (train, val, test, mini_train, mini_val).
        path: File to write.
        progress: Whether to show a progress bar.

    Returns:
        Number of scenes and of key frames.

    Raises:
        BadDataError: If the tables have none of the split's scenes.
    """
    from nuscenes.utils.splits import create_splits_scenes

    names = set(create_splits_scenes()[split])
    scenes = sorted(
        (scene for scene in nusc.scene if scene["name"] in names), key=lambda scene: scene["name"]
    )
    if not scenes:
        raise BadDataError(
            f"the tables in {Path(nusc.dataroot) / nusc.version} have no scene of the split "
            f"{split}: choose another --version"
        )
    reader = SceneReader(nusc)
    bar = tqdm(scenes, desc=split, unit="scene", disable=not progress)
    infos = [info for scene in bar for info in reader.infos(scene)]
    save_infos(path, infos, {"version": nusc.version, "split": split, "format": 1})
    return len(scenes), len(infos)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the command line's options."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--data-root", type=Path, default=Path("data/nuscenes"))
    parser.add_argument("--version", choices=[*SPLITS], default="v1.0-trainval")
    parser.add_argument("--out-dir", type=Path, help="default: the data root")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Writes the info files of all splits of a version."""
    nusc = open_tables(args.data_root, args.version)
    out_dir = args.out_dir or args.data_root
    os.makedirs(out_dir, exist_ok=True)
    for suffix, split in SPLITS[args.version].items():
        path = out_dir / f"nuscenes_infos_{suffix}_sweep.pkl"
        scenes, samples = write_split(nusc, split, path, progress=not args.no_progress)
        print(f"{path}: {samples} samples of {scenes} scenes")


if __name__ == "__main__":
    options = parse_args()
    sys.exit(run_entry_point(lambda: main(options), debug=options.debug))
