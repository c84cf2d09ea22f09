"""Checks of the types and shapes in an info file.

Whole columns (all time stamps, all rotations) are checked at once, since an info file of nuScenes
has a million camera entries. If a column has unusual types, its values are checked one by one. This
accepts lists instead of arrays and names the first wrong value.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from loaders.errors import BadDataError

# Longer names are rejected: one array holds all paths at the width of the longest.
_MAX_TEXT = 1024
_MAX_TIME_US = 250_000_000_000_000_000  # the year 9892; datetime ends in the year 9999

# Upper bound of metres, pixels and parts of rotations; their products stay finite.
_MAX_NUMBER = 1e12
# Rotations whose determinant or quaternion norm is below this are invalid.
_SMALL = 1e-6

Entry = Mapping[str, Any]
_Usable = Callable[[Any], Any]


class _Rule(NamedTuple):
    """Rule for the values of a key.

    Attributes:
        what: Description for errors.
        are_plain: Returns whether all values of a column have the usual type and are valid.
        is_right: Returns whether one value is valid.
    """

    what: str
    are_plain: Callable[[Sequence[Any]], bool]
    is_right: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_time(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, float | np.floating):
        value = int(value) if math.isfinite(value) and value == int(value) else None
    return isinstance(value, int | np.integer) and 0 <= int(value) <= _MAX_TIME_US


def _are_times(values: Sequence[Any]) -> bool:
    return {type(v) for v in values} <= {int} and (
        not values or (min(values) >= 0 and max(values) <= _MAX_TIME_US)
    )


def _numbers(*shape: int, what: str = "", is_usable: _Usable | None = None) -> _Rule:
    """Return the rule for finite numbers of a shape; `is_usable` checks an array [n, *shape]."""

    def are_good(values: np.ndarray[Any, Any]) -> bool:
        # Comparisons with NaN are false.
        is_finite = bool((np.abs(values) <= _MAX_NUMBER).all())
        return is_finite and (is_usable is None or bool(is_usable(values).all()))

    def are_plain(values: Sequence[Any]) -> bool:
        if not values:
            return True
        if {type(v) for v in values} != {np.ndarray} or {v.shape for v in values} != {shape}:
            return False
        if not {v.dtype.kind for v in values} <= set("fiu"):
            return False
        return are_good(np.concatenate(values).astype(np.float64).reshape(-1, *shape))

    def is_right(value: Any) -> bool:
        if isinstance(value, np.ndarray):
            fits = value.shape == shape and value.dtype.kind in "fiu"
        else:
            fits = _is_nested(value, shape)
        return fits and are_good(np.array(value, dtype=np.float64)[None])

    sizes = " x ".join(map(str, shape))
    return _Rule(f"{sizes} finite numbers{what}", are_plain, is_right)


def _is_nested(value: Any, shape: tuple[int, ...]) -> bool:
    """Return whether a value consists of lists of numbers of a shape.

    numpy would unpack lists of any depth.
    """
    if not shape:
        is_number = isinstance(value, int | float | np.integer | np.floating)
        return is_number and not isinstance(value, bool) and -_MAX_NUMBER <= value <= _MAX_NUMBER
    if isinstance(value, np.ndarray):
        return value.shape == shape and value.dtype.kind in "fiu"
    fits = isinstance(value, list | tuple) and len(value) == shape[0]
    return fits and all(_is_nested(part, shape[1:]) for part in value)


def _is_turn(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.linalg.norm(values, axis=-1) > _SMALL


def _is_invertible(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.abs(np.linalg.det(values)) > _SMALL


def _are_texts(values: Sequence[Any]) -> bool:
    if not {type(v) for v in values} <= {str}:
        return False
    joined = "".join(values)
    longest = max(map(len, values), default=0)
    return joined.isascii() and "\0" not in joined and longest <= _MAX_TEXT


_TEXT = _Rule("a text", _are_texts, _is_text)
_NAME = _Rule(
    "a text that is not empty",
    lambda values: _are_texts(values) and all(values),
    lambda value: _is_text(value) and bool(value),
)
_TIME = _Rule("an integer of microseconds", _are_times, _is_time)

_QUATERNION = _numbers(4, what=" that make a quaternion", is_usable=_is_turn)

_INFO_RULES = {
    "token": _NAME,
    "scene_name": _TEXT,
    "scene_token": _TEXT,
    "lidar_token": _TEXT,
    "timestamp": _TIME,
    "lidar_path": _TEXT,
    "lidar2ego_translation": _numbers(3),
    "lidar2ego_rotation": _QUATERNION,
    "ego2global_translation": _numbers(3),
    "ego2global_rotation": _QUATERNION,
}
_CAMERA_RULES = {
    "data_path": _NAME,
    "timestamp": _TIME,
    "cam_intrinsic": _numbers(3, 3),
    "sensor2global_rotation": _numbers(
        3, 3, what=" that make a rotation", is_usable=_is_invertible
    ),
    "sensor2global_translation": _numbers(3),
}
# Read only where LiDAR is used, so an info file may lack them.
_SWEEP_RULES = {
    "data_path": _NAME,
    "timestamp": _TIME,
    "sensor2lidar_rotation": _numbers(3, 3),
    "sensor2lidar_translation": _numbers(3),
}


def check_infos(
    infos: Sequence[Any], path: str | os.PathLike[str], remedy: str, keys: Sequence[str]
) -> None:
    """Check the types and shapes of an info file's content.

    Args:
        infos: Key frames.
        path: The file, for the error.
        remedy: Remedy, for the error.
        keys: Keys that every key frame must have.

    Raises:
        BadDataError: If a value is wrong; the error names file, key frame and key of the first one.
    """

    def wrong(i: int, key: str, problem: str) -> BadDataError:
        token = infos[i].get("token") if isinstance(infos[i], Mapping) else None
        name = f" ({token:.80})" if isinstance(token, str) and token else ""
        return BadDataError(f"info file {path}, entry {i}{name}, '{key}' {problem}: {remedy}")

    for i, info in enumerate(infos):
        missing = [key for key in keys if not isinstance(info, Mapping) or key not in info]
        if missing:
            raise BadDataError(f"info file {path}, entry {i}, lacks '{missing[0]}': {remedy}")
        problem = _wrong_structure(info)
        if problem:
            raise wrong(i, *problem)
    for rules, parts, is_needed in (
        (_INFO_RULES, _whole, True),
        (_CAMERA_RULES, _cameras, True),
        (_SWEEP_RULES, _lidar_sweeps, False),
    ):
        if _are_plain([entry for info in infos for _, entry in parts(info)], rules):
            continue
        for i, info in enumerate(infos):
            for name, entry in parts(info):
                problem = _wrong_entry(entry, rules, is_needed)
                if problem:
                    raise wrong(i, name + problem[0], problem[1])


def check_metadata(metadata: Mapping[Any, Any], path: str | os.PathLike[str], remedy: str) -> None:
    """Check the types in the header of an info file.

    Raises:
        BadDataError: If a type is wrong; the error names the file and the key.
    """
    for key in ("version", "content_hash"):
        if metadata.get(key) is not None and not isinstance(metadata[key], str):
            raise BadDataError(f"info file {path}, metadata, '{key}' is not text: {remedy}")
    for key in ("num_samples", "content_bytes"):
        value = metadata.get(key)
        if value is not None and not (isinstance(value, int) and value >= 0):
            raise BadDataError(f"info file {path}, metadata, '{key}' is not a number: {remedy}")


def _wrong_structure(info: Entry) -> tuple[str, str] | None:
    """Return key and problem of the first container of the wrong type in a key frame."""
    cams, cam_sweeps, lidar_sweeps = info["cams"], info["cam_sweeps"], info["lidar_sweeps"]
    if not isinstance(cams, Mapping):
        return "cams", "is not a dict of cameras"
    for name, value in (("cam_sweeps", cam_sweeps), ("lidar_sweeps", lidar_sweeps)):
        if not isinstance(value, list | tuple):
            return name, "is not a list of sweeps"
        for i, sweep in enumerate(value):
            if not isinstance(sweep, Mapping):
                return f"{name}[{i}]", "is not a dict"
    places = [("cams", cams), *((f"cam_sweeps[{i}]", s) for i, s in enumerate(cam_sweeps))]
    for place, cameras in places:
        for name, entry in cameras.items():
            if not isinstance(name, str) or not isinstance(entry, Mapping):
                return f"{place}.{name!s:.80}", "is not a dict of a camera"
    return None


def _whole(info: Entry) -> Iterator[tuple[str, Entry]]:
    yield "", info


def _cameras(info: Entry) -> Iterator[tuple[str, Entry]]:
    for name, entry in info["cams"].items():
        yield f"cams.{name}.", entry
    for i, sweep in enumerate(info["cam_sweeps"]):
        for name, entry in sweep.items():
            yield f"cam_sweeps[{i}].{name}.", entry


def _lidar_sweeps(info: Entry) -> Iterator[tuple[str, Entry]]:
    for i, entry in enumerate(info["lidar_sweeps"]):
        yield f"lidar_sweeps[{i}].", entry


def _are_plain(entries: Sequence[Entry], rules: Mapping[str, _Rule]) -> bool:
    """Return whether all columns have the usual types and valid values."""
    for key, rule in rules.items():
        try:
            values = [entry[key] for entry in entries]
        except KeyError:
            return False
        if not rule.are_plain(values):
            return False
    return True


def _wrong_entry(
    entry: Entry, rules: Mapping[str, _Rule], is_needed: bool
) -> tuple[str, str] | None:
    """Return key and problem of the first wrong value of an entry."""
    for key, rule in rules.items():
        if key not in entry:
            if is_needed:
                return key, "is missing"
        elif not rule.is_right(entry[key]):
            value = " ".join(reprlib.repr(entry[key]).split())
            return key, f"is not {rule.what} (it is {value:.60})"
    return None
