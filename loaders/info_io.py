"""Reading and writing info files: one pickle with a dict per key frame and a header.

A pickle can run code while it is read, and info files are passed around, so the reader accepts
plain containers, numbers, strings and numpy arrays only. It reads files of numpy 1 and 2 alike, and
files of the published nuScenes tool chains (mmdet3d's old-style infos plus a sweep script).
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np

from loaders.errors import BadDataError, MissingDataError

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)

_REGENERATE = "write it anew with scripts/gen_sweep_info.py"

# Keys of one key frame and of one camera that readers may rely on.
INFO_KEYS = (
    "token",
    "scene_name",
    "scene_token",
    "lidar_token",
    "timestamp",
    "lidar_path",
    "lidar2ego_translation",
    "lidar2ego_rotation",
    "ego2global_translation",
    "ego2global_rotation",
    "cams",
    "cam_sweeps",
    "lidar_sweeps",
)
CAM_KEYS = (
    "data_path",
    "timestamp",
    "cam_intrinsic",
    "sensor2global_rotation",
    "sensor2global_translation",
)


@dataclass(frozen=True)
class InfoFile:
    """Content of an info file.

    Attributes:
        infos: One dict per key frame (see ``INFO_KEYS``), in time order within a scene.
        metadata: Header; ``version`` is the nuScenes version.
    """

    infos: list[dict[str, Any]]
    metadata: dict[str, Any]


def _latin1_encode(text: str, encoding: str = "latin1") -> bytes:
    # How protocol-2 pickles spell bytes; the general codec look-up is not exposed.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding}")
    return text.encode("latin1")


def _allowed_globals() -> dict[tuple[str, str], Any]:
    # Taken from objects instead of by module path, so that numpy 1 reads files of numpy 2 and
    # the reverse, whatever the modules are called here.
    array = np.zeros(1)
    reconstruct: Callable[..., Any] = array.__reduce__()[0]  # type: ignore[assignment]
    scalar: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
    from_buffer: Callable[..., Any] = array.__reduce_ex__(5)[0]  # type: ignore[assignment]
    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): dict,
        ("_codecs", "encode"): _latin1_encode,
    }
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = reconstruct
        allowed[f"{core}.multiarray", "scalar"] = scalar
        allowed[f"{core}.numeric", "_frombuffer"] = from_buffer
    for name in ("set", "frozenset", "bytearray", "complex"):
        for module in ("builtins", "__builtin__"):
            allowed[module, name] = getattr(__import__("builtins"), name)
    return allowed


class _RestrictedUnpickler(pickle.Unpickler):
    """Unpickler that resolves plain containers and numpy arrays only."""

    _allowed = _allowed_globals()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """Reads a pickle of plain containers and numpy arrays.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is no pickle, is truncated, or asks for anything else to be loaded
            (which could run code).
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise MissingDataError(f"info file {path} does not exist: {_REGENERATE}") from None
    except OSError as error:
        raise BadDataError(f"info file {path} cannot be read ({error.strerror})") from error
    try:
        return _RestrictedUnpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError as error:
        raise BadDataError(
            f"info file {path} is refused, for {error}, and only plain data and numpy arrays may "
            f"be loaded: {_REGENERATE}"
        ) from error
    except Exception as error:  # the unpickler raises nearly anything on broken input
        raise BadDataError(f"info file {path} is no complete pickle: {_REGENERATE}") from error


def load_infos(path: str | os.PathLike[str]) -> InfoFile:
    """Reads an info file.

    Raises:
        MissingDataError: If it does not exist.
        BadDataError: If it is broken, refused (see :func:`load_pickle`) or lacks keys.
    """
    content = load_pickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("infos"), list):
        raise BadDataError(f"info file {path} has no list 'infos': {_REGENERATE}")
    infos, metadata = content["infos"], content.get("metadata", {})
    if not isinstance(metadata, dict):
        raise BadDataError(f"info file {path} has a broken 'metadata': {_REGENERATE}")
    for i, info in enumerate(infos):
        missing = [key for key in INFO_KEYS if not isinstance(info, dict) or key not in info]
        if missing:
            raise BadDataError(f"info file {path}, entry {i}, lacks '{missing[0]}': {_REGENERATE}")
    return InfoFile(infos, metadata)


def save_infos(
    path: str | os.PathLike[str], infos: Sequence[dict[str, Any]], metadata: dict[str, Any]
) -> None:
    """Writes an info file atomically: readers see the old file or the whole new one.

    Args:
        path: Target; its folder must exist.
        infos: One dict per key frame.
        metadata: Header; ``num_samples``, ``num_scenes`` and ``content_hash`` are added.
    """
    path = Path(path)
    header = {
        **metadata,
        "num_samples": len(infos),
        "num_scenes": len({info["scene_token"] for info in infos}),
        "content_hash": hashlib.sha256(pickle.dumps(list(infos), protocol=4)).hexdigest(),
    }
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            pickle.dump({"infos": list(infos), "metadata": header}, file, protocol=4)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp files are private to their owner
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def relative_data_path(path: str) -> str:
    """Returns a sensor file's path relative to the nuScenes root, with forward slashes.

    Info files of the published tool chain hold paths such as ``./data/nuscenes/samples/...`` or
    ``/home/someone/nuscenes/sweeps/...``; what follows the last ``samples`` or ``sweeps`` folder is
    the same on every machine. A path with neither is returned as it is.
    """
    parts = PurePosixPath(path.replace("\\", "/")).parts
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] in ("samples", "sweeps"):
            return "/".join(parts[i:])
    return path
