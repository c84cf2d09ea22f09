"""Completion of other tool chains' info files from the tables.

Supported are files of mmdet3d's converter (old style: `infos`; new style: `data_list`), of BEVDet,
which extend the old style, and the files derived from them by the sweep scripts of SparseBEV,
SparseOcc and OPUS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
_NEEDED = ("token", "cams", "lidar_path", "timestamp", *_POSE_KEYS)
_REMEDY = "leave out --from, the tables have all data"

Info = Mapping[str, Any]


def read_other_infos(path: Path) -> dict[str, Info | None]:
    """Read an info file of another tool chain.

    Returns:
        Infos by sample token; None in mmdet3d's new style, for which all data are taken from the
        tables.

    Raises:
        MissingDataError: The file does not exist.
        BadDataError: The file is damaged or not an info file.
    """
    content = load_pickle(path)
    is_new = isinstance(content, dict) and "data_list" in content
    key = "data_list" if is_new else "infos"
    infos = content.get(key) if isinstance(content, dict) else content
    if not isinstance(infos, list) or not infos:
        raise BadDataError(f"{path} is not an info file: it has no 'infos' and no 'data_list'")
    for i, info in enumerate(infos):
        needed = ("token",) if is_new else _NEEDED
        lacking = [name for name in needed if not isinstance(info, Mapping) or name not in info]
        if lacking:
            raise BadDataError(
                f"{path}, entry {i}, lacks '{lacking[0]}': it is not an info file of mmdet3d, "
                f"BEVDet, SparseBEV, SparseOcc or OPUS; {_REMEDY}"
            )
        if not isinstance(info["token"], str):
            raise BadDataError(f"{path}, entry {i}, has a 'token' that is not text")
    return {info["token"]: None if is_new else info for info in infos}


def complete_info(other: Info, own: Info, path: Path) -> dict[str, Any]:
    """Return an info with the poses, files and further keys of another tool chain's info.

    Args:
        other: Info of the file; annotations and other keys are kept.
        own: Info of the tables; provides the data that `other` lacks: names of scene and LiDAR
            record, sweeps.
        path: The file, for error messages.

    Raises:
        BadDataError: A camera of `other` lacks a key, or a value has a wrong type.
    """
    try:
        completed = _completed(other, own)
    except UserError:
        raise
    except Exception as error:  # values of any wrong type
        raise BadDataError(
            f"key frame {own['token']} in {path} cannot be read ({type(error).__name__}: {error}): "
            f"{_REMEDY}"
        ) from error
    check_infos([completed], path, _REMEDY, INFO_KEYS)
    return completed


def _completed(other: Info, own: Info) -> dict[str, Any]:
    token = str(other["token"])
    kept = {key: value for key, value in other.items() if key != "sweeps"}
    cam_sweeps, lidar_sweeps = _sweeps(other)
    if cam_sweeps is None:
        cam_sweeps = own["cam_sweeps"]
    else:
        cam_sweeps = [_cameras(sweep, token) for sweep in cam_sweeps]
    if lidar_sweeps is None:
        lidar_sweeps = own["lidar_sweeps"]
    else:
        lidar_sweeps = [
            {**sweep, "data_path": relative_data_path(str(sweep["data_path"]))}
            for sweep in lidar_sweeps[:MAX_LIDAR_SWEEPS]
        ]
    return {
        **kept,
        **{key: own[key] for key in ("scene_name", "scene_token", "lidar_token")},
        "lidar_path": relative_data_path(str(other["lidar_path"])),
        "cams": _cameras(other["cams"], token),
        "cam_sweeps": cam_sweeps,
        "lidar_sweeps": lidar_sweeps,
    }


def _sweeps(info: Info) -> tuple[Sequence[Info] | None, Sequence[Info] | None]:
    """Return camera sweeps and LiDAR sweeps of an info; None for missing ones.

    The key `sweeps` has LiDAR sweeps in mmdet3d's files, and camera sweeps in the files of
    SparseBEV's and SparseOcc's scripts.
    """
    cam_sweeps, lidar_sweeps = info.get("cam_sweeps"), info.get("lidar_sweeps")
    sweeps = info.get("sweeps") or ()
    if sweeps and "data_path" in sweeps[0]:
        lidar_sweeps = sweeps
    elif sweeps:
        cam_sweeps = sweeps
    return cam_sweeps, lidar_sweeps


def _cameras(cams: Info, token: str) -> dict[str, Any]:
    return {name: _camera(cam, name, token) for name, cam in cams.items()}


def _camera(cam: Info, name: str, token: str) -> dict[str, Any]:
    """Return a camera with its pose in the global frame, stored for row vectors."""
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
            f"camera {name} of key frame {token} lacks {error} in the info file: {_REMEDY}"
        ) from error
