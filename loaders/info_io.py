"""Reading and writing of info files: one pickle with a dict per key frame and a header.

A pickle can run code when it is read, and info files are passed around. The reader therefore
accepts only plain containers, numbers, strings and numpy arrays. It reads files of numpy 1 and 2,
and files of the published nuScenes tool chains (mmdet3d's old-style infos plus a sweep script).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np

from loaders.errors import BadDataError
from loaders.info_checks import check_infos, check_metadata
from loaders.safe_reading import MIB, FileKind, file_size, limited_memory, open_file

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)

_REGENERATE = "write it again with scripts/gen_sweep_info.py"
_INFO_FILE = FileKind("info file", _REGENERATE, _REGENERATE, max_bytes=8 << 30)
# In memory, nuScenes infos need three to five times their file's size, lists of numbers 14 times.
_MEMORY_FACTOR = 16
_MEMORY_FLOOR = 64 * MIB

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
        infos: One dict per key frame (see `INFO_KEYS`), in time order within a scene.
        metadata: Header; `version` is the nuScenes version.
    """

    infos: list[dict[str, Any]]
    metadata: dict[str, Any]


def _latin1_encode(text: str, encoding: str = "latin1") -> bytes:
    # Protocol-2 pickles store bytes this way; the general codec look-up is not exposed.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding}")
    return text.encode("latin1")


def _allowed_globals() -> dict[tuple[str, str], Any]:
    # Looked up by object, not by module path: module names differ between numpy 1 and 2, and each
    # must read files of the other.
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
    """Unpickler that resolves only plain containers and numpy arrays."""

    _allowed = _allowed_globals()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}") from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of plain containers and numpy arrays, with bounded memory.

    Raises:
        MissingDataError: If the file does not exist.
        BadDataError: If it is not a pickle, is truncated, requests more memory than a file of its
            size can need, or refers to any other type (which could run code).
    """
    with open_file(path, _INFO_FILE) as file:
        limit = _MEMORY_FLOOR + _MEMORY_FACTOR * file_size(file)
        try:
            with limited_memory(limit):
                return _RestrictedUnpickler(file).load()
        except pickle.UnpicklingError as error:
            raise _INFO_FILE.broken(
                path,
                f"is rejected because {error}; only plain data and numpy arrays may be loaded",
            ) from error
        except MemoryError as error:
            raise _INFO_FILE.broken(
                path, f"is rejected because it requests more than {limit / MIB:.0f} MiB of memory"
            ) from error
        except Exception as error:  # the unpickler raises almost any type on broken input
            raise _INFO_FILE.broken(path, "is not a complete pickle") from error


def load_infos(path: str | os.PathLike[str]) -> InfoFile:
    """Read an info file and check it (see `loaders.info_checks`).

    Raises:
        MissingDataError: If it does not exist.
        BadDataError: If it is broken, rejected (see `load_pickle`), lacks keys, or holds
            values of a wrong type or shape.
    """
    content = load_pickle(path)
    _refuse_other_style(content, path)
    if not isinstance(content, dict) or not isinstance(content.get("infos"), list):
        raise BadDataError(f"info file {path} has no list 'infos': {_REGENERATE}")
    infos, metadata = content["infos"], content.get("metadata", {})
    if not isinstance(metadata, dict):
        raise BadDataError(f"info file {path} has a broken 'metadata': {_REGENERATE}")
    infos = [_with_names(info) for info in infos]
    check_metadata(metadata, path, _REGENERATE)
    check_infos(infos, path, _REGENERATE, INFO_KEYS)
    return InfoFile(infos, metadata)


def _refuse_other_style(content: Any, path: str | os.PathLike[str]) -> None:
    """Raise BadDataError if a file is in the format of mmdet3d, BEVDet, SparseBEV or SparseOcc."""
    infos = content.get("infos") if isinstance(content, dict) else content
    first = infos[0] if isinstance(infos, list) and infos else None
    is_other = isinstance(content, dict) and "data_list" in content
    if isinstance(first, dict) and not {"cam_sweeps", "scene_name"} <= first.keys():
        is_other = is_other or {"token", "sweeps", "cams"} <= first.keys()
    if is_other:
        raise BadDataError(
            f"info file {path} is one of mmdet3d, BEVDet, SparseBEV or SparseOcc, without scene "
            "names and sweeps: complete it with python scripts/gen_sweep_info.py --from "
            f"{path} --data-root DATA_ROOT --version VERSION"
        )


def _with_names(info: Any) -> Any:
    """Return an info with the keys that OPUS-V1's sweep script omits.

    Its scene names serve as tokens. Labels of OpenOccupancy cannot be found from such files.
    """
    if isinstance(info, dict) and {"scene_name", "cam_sweeps", "lidar_sweeps"} <= info.keys():
        return {"scene_token": info["scene_name"], "lidar_token": "", **info}
    return info


def infos_fragment(infos: Sequence[dict[str, Any]]) -> bytes:
    """Return a pickle fragment that appends infos to the list on top of the unpickler's stack.

    Protocol 3 numbers repeated objects within each fragment, so fragments of several processes can
    be concatenated. Protocol 4 numbers them across the whole file.
    """
    start = b"\x80\x03]q\x00"  # protocol 3; empty list; number 0
    data = pickle.dumps(list(infos), protocol=3)
    if not data.startswith(start):
        raise AssertionError("pickle does not start a list as protocol 3 defines it")
    return data[len(start) : -1]  # without the final stop


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


class InfoWriter:
    """Writer of an info file, piece by piece and atomic: readers see the old file or the new one.

    A context manager; after an exception the old file remains. The file is an ordinary pickle
    `{'infos': [...], 'metadata': {...}}`. Memory use does not depend on its size.

    Args:
        path: Target; its folder must exist.
        metadata: Header; `num_samples`, `num_scenes`, `content_bytes` and `content_hash`
            (SHA-256 of the pickled infos, see `content_hash`) are added.
    """

    _START = b"\x80\x03}" + _text("infos") + b"]"

    def __init__(self, path: str | os.PathLike[str], metadata: dict[str, Any]) -> None:
        self._path = Path(path)
        self._metadata = metadata
        self._hash = hashlib.sha256()
        self._num_samples = self._num_scenes = self._num_bytes = 0

    def __enter__(self) -> InfoWriter:
        handle, self._temporary = tempfile.mkstemp(
            prefix=f".{self._path.name}.", dir=self._path.parent
        )
        self._file = os.fdopen(handle, "wb")
        self._file.write(self._START)
        return self

    def add_scene(self, fragment: bytes, num_samples: int) -> None:
        """Append the infos of a scene, as returned by `infos_fragment`."""
        self._file.write(fragment)
        self._hash.update(fragment)
        self._num_bytes += len(fragment)
        self._num_samples += num_samples
        self._num_scenes += 1

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            if kind is None:
                self._finish()
                os.chmod(self._temporary, 0o644)  # mkstemp files are readable by their owner only
                os.replace(self._temporary, self._path)
        finally:
            self._file.close()
            if os.path.exists(self._temporary):
                os.unlink(self._temporary)

    def _finish(self) -> None:
        header = {
            **self._metadata,
            "num_samples": self._num_samples,
            "num_scenes": self._num_scenes,
            "content_bytes": self._num_bytes,
            "content_hash": self._hash.hexdigest(),
        }
        # Without protocol mark and stop code: a further fragment of the same pickle.
        self._file.write(b"s" + _text("metadata") + pickle.dumps(header, protocol=3)[2:-1] + b"s.")
        self._file.flush()
        os.fsync(self._file.fileno())


def save_infos(
    path: str | os.PathLike[str], infos: Sequence[dict[str, Any]], metadata: dict[str, Any]
) -> None:
    """Write an info file in one call (see `InfoWriter`); infos of a scene must be consecutive."""
    with InfoWriter(path, metadata) as writer:
        for _, group in itertools.groupby(infos, key=lambda info: str(info["scene_token"])):
            scene = list(group)
            writer.add_scene(infos_fragment(scene), len(scene))


def content_hash(path: str | os.PathLike[str], metadata: dict[str, Any]) -> str:
    """Return the hash of the infos that a file holds now.

    Args:
        path: A file of `InfoWriter`.
        metadata: Its header; `content_hash` in it is the hash at the time of writing.
    """
    digest, left = hashlib.sha256(), int(metadata["content_bytes"])
    with open(path, "rb") as file:
        file.seek(len(InfoWriter._START))
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def info_file_name(version: str, split: str) -> str:
    """Return the name of a split's info file, relative to the data root.

    Args:
        version: nuScenes version, for instance 'v1.0-trainval'.
        split: 'train', 'val' or 'test'.

    Returns:
        `nuscenes_infos_<split>_sweep.pkl`. For subsets the part after `v1.0-` is added:
        `nuscenes_infos_<split>_mini_sweep.pkl` for 'v1.0-mini'.
    """
    part = version.removeprefix("v1.0-")
    suffix = "" if part in ("trainval", "test") else f"_{part}"
    return f"nuscenes_infos_{split}{suffix}_sweep.pkl"


class DataPaths:
    """Make the paths of an info file relative to the data root if the files are in it.

    An absolute path is kept if its file exists and is not under the data root. This is looked up
    once per folder.

    Args:
        data_root: Folder of the data set; None makes all paths relative.
    """

    def __init__(self, data_root: str | os.PathLike[str] | None) -> None:
        self._root = None if data_root is None else Path(data_root)
        self._is_elsewhere: dict[str, bool] = {}

    def __call__(self, path: str) -> str:
        """Return the path of a sensor file."""
        inner = relative_data_path(path)
        if self._root is None or inner == path or not Path(path).is_absolute():
            return inner
        outer = path[: -len(inner)]
        if outer not in self._is_elsewhere:
            is_inside = (self._root / inner).exists()
            self._is_elsewhere[outer] = not is_inside and Path(path).exists()
        return path if self._is_elsewhere[outer] else inner


def relative_data_path(path: str) -> str:
    """Return a sensor file's path relative to the nuScenes root, with forward slashes.

    Info files of the published tool chain hold paths such as `./data/nuscenes/samples/...` or
    `/home/someone/nuscenes/sweeps/...`. The part after the last `samples` or `sweeps` folder is
    the same on every machine. A path without either is returned unchanged.
    """
    parts = PurePosixPath(path.replace("\\", "/")).parts
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] in ("samples", "sweeps"):
            return "/".join(parts[i:])
    return path
