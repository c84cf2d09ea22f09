"""Old-style infos of mmdet3d's converter (before its version 1.1), completed from the tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loaders.errors import BadDataError
from loaders.info_checks import check_infos
from loaders.info_io import CAM_KEYS, INFO_KEYS, load_pickle, relative_data_path
from loaders.transforms.geometry import quaternion_to_matrix
from models.errors import UserError
from scripts.sweep_infos.scenes import MAX_LIDAR_SWEEPS

_POSE_KEYS = (
    "lidar2ego_translation",
    "lidar2ego_rotation",
    "ego2global_translation",
    "ego2global_rotation",
)


def read_old_infos(path: Path) -> dict[str, dict[str, Any]]:
    """Reads a file of mmdet3d's converter: infos by sample token.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is broken, of the new style, or something else.
    """
    content = load_pickle(path)
    if isinstance(content, dict) and "data_list" in content:
        raise BadDataError(
            f"{path} is an info file of mmdet3d's new style ('data_list'), which lacks the poses "
            "of LiDAR sweeps: leave out --from-mmdet3d, the tables have all"
        )
    infos = content.get("infos") if isinstance(content, dict) else content
    if not isinstance(infos, list) or not infos:
        raise BadDataError(f"{path} is no info file of mmdet3d's converter: it has no 'infos'")
    needed = ("token", "cams", "sweeps", "lidar_path", "timestamp", *_POSE_KEYS)
    for i, info in enumerate(infos):
        lacking = [key for key in needed if not isinstance(info, Mapping) or key not in info]
        if not lacking and not isinstance(info["token"], str):
            raise BadDataError(f"{path}, entry {i}, has a 'token' that is no text")
        if lacking:
            raise BadDataError(
                f"{path}, entry {i}, lacks '{lacking[0]}': it is no info file of mmdet3d's "
                "converter; leave out --from-mmdet3d, the tables have all"
            )
    return {info["token"]: info for info in infos}


def complete_old_info(old: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an info with the poses, files and further keys of mmdet3d's converter.

    Args:
        old: Of the converter; annotations and other keys are kept.
        own: Of the tables; gives what the converter leaves out (names of scene and LiDAR record,
            camera sweeps).

    Raises:
        BadDataError: If a camera of ``old`` lacks a key, or a value is of a wrong type.
    """
    try:
        completed = _completed(old, own)
    except UserError:
        raise
    except Exception as error:  # values of any wrong type
        raise BadDataError(
            f"key frame {own['token']} in the infos of mmdet3d's converter cannot be read "
            f"({type(error).__name__}: {error}): leave out --from-mmdet3d, the tables have all"
        ) from error
    remedy = "leave out --from-mmdet3d, the tables have all"
    check_infos([completed], "of mmdet3d's converter", remedy, INFO_KEYS)
    return completed


def _completed(old: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in old.items() if key != "sweeps"}
    sweeps = [
        {**sweep, "data_path": relative_data_path(str(sweep["data_path"]))}
        for sweep in old["sweeps"][:MAX_LIDAR_SWEEPS]
    ]
    return {
        **kept,
        **{key: own[key] for key in ("scene_name", "scene_token", "lidar_token", "cam_sweeps")},
        "lidar_path": relative_data_path(str(old["lidar_path"])),
        "cams": {name: _camera(cam, name, str(old["token"])) for name, cam in old["cams"].items()},
        "lidar_sweeps": sweeps,
    }


def _camera(cam: Mapping[str, Any], name: str, token: str) -> dict[str, Any]:
    """Returns a camera with its pose in the global frame, stored for row vectors."""
    out = {**cam, "data_path": relative_data_path(str(cam.get("data_path", "")))}
    try:
        if "sensor2global_rotation" not in cam:
            ego2global = quaternion_to_matrix(cam["ego2global_rotation"])
            sensor2ego = quaternion_to_matrix(cam["sensor2ego_rotation"])
            out["sensor2global_rotation"] = (ego2global @ sensor2ego).T
            out["sensor2global_translation"] = ego2global @ np.array(
                cam["sensor2ego_translation"]
            ) + np.array(cam["ego2global_translation"])
        return {**out, **{key: out[key] for key in CAM_KEYS}}
    except KeyError as error:
        raise BadDataError(
            f"camera {name} of key frame {token} lacks {error} in the infos of mmdet3d's "
            "converter: leave out --from-mmdet3d, the tables have all"
        ) from error
