"""Creation of a scene's infos from the tables. Frames: p_global = R @ p_sensor + t, metres."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.errors import BadDataError
from loaders.transforms.geometry import quaternion_to_matrix
from scripts.sweep_infos.tables import Tables

MAX_CAM_SWEEPS = 5
MAX_LIDAR_SWEEPS = 10

Matrix = npt.NDArray[np.float64]
Chains = Mapping[str, range]


class SceneReader:
    """Reader that creates the infos of a scene.

    Args:
        tables: Tables of the data set.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._frames = tables.frames

    def infos(self, scene: int) -> list[dict[str, Any]]:
        """Return the infos of the key frames of scene number `scene`, in time order.

        Raises:
            BadDataError: A key frame lacks a camera or the LiDAR.
        """
        chains = {name: self._frames.rows(scene, i) for i, name in enumerate(self._tables.channels)}
        key_rows = {
            name: {int(self._frames.sample[row]): row for row in rows if self._frames.is_key[row]}
            for name, rows in chains.items()
        }
        samples = self._tables.samples[scene]
        return [
            self._info(scene, sample, chains, key_rows, is_first=not i)
            for i, sample in enumerate(samples)
        ]

    def _info(
        self,
        scene: int,
        sample: Mapping[str, Any],
        chains: Chains,
        key_rows: Mapping[str, Mapping[int, int]],
        is_first: bool,
    ) -> dict[str, Any]:
        record, index = self._tables.scenes[scene], self._tables.sample_index[sample["token"]]
        missing = [name for name in self._tables.channels if index not in key_rows[name]]
        if missing:
            raise BadDataError(
                f"key frame {sample['token']} of {record['name']} has no {missing[0]} in the "
                "tables: restore them from the original archive, or name the channels that all key "
                "frames have with --cameras and --lidar"
            )
        keys = {name: rows[index] for name, rows in key_rows.items()}
        # Without a LiDAR, a key frame has the pose of its first camera's image, and the LiDAR frame
        # is equal to the vehicle frame.
        name = self._tables.lidar
        row = keys[self._tables.cameras[0]] if name is None else keys.pop(name)
        mount = self._tables.mounts[self._frames.mount[row]]
        rotation = [1.0, 0.0, 0.0, 0.0] if name is None else list(mount.rotation_wxyz)
        return {
            "token": sample["token"],
            "scene_name": record["name"],
            "scene_token": record["token"],
            "lidar_token": "" if name is None else self._frames.token[row].decode(),
            "timestamp": sample["timestamp"],
            "lidar_path": "" if name is None else self._filename(row),
            "lidar2ego_translation": mount.translation.tolist(),
            "lidar2ego_rotation": rotation,
            "ego2global_translation": self._frames.ego_translation[row].tolist(),
            "ego2global_rotation": self._frames.ego_rotation_wxyz[row].tolist(),
            "cams": {name: self._camera(keys[name]) for name in self._tables.cameras},
            "cam_sweeps": [] if is_first else self._camera_sweeps(keys, chains),
            "lidar_sweeps": [] if name is None else self._lidar_sweeps(row, chains[name].start),
        }

    def _filename(self, row: int) -> str:
        return self._frames.filename[row].decode()

    def _sensor2global(self, row: int) -> tuple[Matrix, Matrix]:
        """Return R [3, 3] and t [3] of a frame's sensor."""
        mount = self._tables.mounts[self._frames.mount[row]]
        ego2global = quaternion_to_matrix(self._frames.ego_rotation_wxyz[row])
        translation = ego2global @ mount.translation + self._frames.ego_translation[row]
        return ego2global @ mount.rotation, translation

    def _camera(self, row: int) -> dict[str, Any]:
        rotation, translation = self._sensor2global(row)
        return {
            "data_path": self._filename(row),
            "timestamp": int(self._frames.timestamp[row]),
            # One array for all frames of a mounting, so that it is written once per scene.
            "cam_intrinsic": self._tables.mounts[self._frames.mount[row]].intrinsic,
            # Transposed: the format multiplies row vectors from the left.
            "sensor2global_rotation": np.ascontiguousarray(rotation.T),
            "sensor2global_translation": translation,
        }

    def _camera_sweeps(self, keys: Mapping[str, int], chains: Chains) -> list[dict[str, Any]]:
        """Return the sweeps since the previous key frame, newest first, each with all cameras.

        Single frames of a camera may be missing; such a sweep reuses the frame of the sweep before
        it. Sweeps without a complete sweep before them are left out.
        """
        found: dict[str, list[int]] = {}
        for name, key in keys.items():
            older = range(key - 1, max(chains[name].start, key - MAX_CAM_SWEEPS) - 1, -1)
            stop = next((i for i, row in enumerate(older) if self._frames.is_key[row]), len(older))
            found[name] = list(older[:stop])
        sweeps: list[dict[str, Any]] = []
        for i in range(max(map(len, found.values()))):
            if all(i < len(rows) for rows in found.values()):
                sweeps.append({name: self._camera(found[name][i]) for name in self._tables.cameras})
            elif sweeps:
                sweeps.append(sweeps[-1])
        return sweeps

    def _lidar_sweeps(self, key: int, first: int) -> list[dict[str, Any]]:
        """Return the LiDAR sweeps before a key frame, newest first, including key frames."""
        key_rotation, key_translation = self._sensor2global(key)
        sweeps: list[dict[str, Any]] = []
        for row in range(key - 1, max(first, key - MAX_LIDAR_SWEEPS) - 1, -1):
            rotation, translation = self._sensor2global(row)
            sweeps.append(
                {
                    "data_path": self._filename(row),
                    "timestamp": int(self._frames.timestamp[row]),
                    "sensor2lidar_rotation": key_rotation.T @ rotation,
                    "sensor2lidar_translation": key_rotation.T @ (translation - key_translation),
                }
            )
        return sweeps
