"""Safe reading of a data set's files: checked when opened, bounded, with errors that name the file.

All kinds of files are read in the same order. The file must be a regular file of bounded size. Its
header is checked before its content is read. The content is read into memory of known size.
Exceptions of libraries become errors of the project, with the name of the file and the remedy.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import re
import stat
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from loaders.errors import BadDataError, MissingDataError, TruncatedDataError
from models.errors import UserError

MIB = 1 << 20
StrPath = str | os.PathLike[str]

# numpy writes headers of less than 200 bytes for arrays of numbers.
_MAX_ARRAY_HEADER = 4096
_NPY_MAGIC = b"\x93NUMPY"
# An archive of a few arrays needs some hundred bytes of directory.
_MAX_ZIP_DIRECTORY = MIB
_ZIP_END = b"PK\x05\x06"
_ZIP_END_BYTES = 22
_ZIP64_LOCATOR = b"PK\x06\x07"
_CHUNK = MIB


@dataclass(frozen=True)
class FileKind:
    """Wording of errors about a kind of file, and its maximum size.

    Attributes:
        name: Name of the kind; the first words of an error.
        missing: Remedy if the file does not exist.
        restore: Remedy if the file is broken.
        max_bytes: Larger files are not read.
        error: Class of errors about broken files.
        missing_error: Class of errors about files that do not exist.
    """

    name: str
    missing: str
    restore: str
    max_bytes: int
    error: type[UserError] = BadDataError
    missing_error: type[UserError] = MissingDataError

    def broken(
        self, path: StrPath, problem: str = "is broken", error: type[UserError] | None = None
    ) -> UserError:
        """Return the error `<name> <path> <problem>: <restore>`."""
        return (error or self.error)(f"{self.name} {path} {problem}: {self.restore}")


@contextlib.contextmanager
def reading(path: StrPath, kind: FileKind, problem: str = "is broken") -> Iterator[None]:
    """Convert any exception of a library on a broken file into an error of the project.

    Wrap only calls of libraries: errors in the project's own code would be hidden.

    Raises:
        UserError: `kind.error`, for any exception inside except the project's own.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # readers of hostile content raise almost any type
        raise kind.broken(path, problem) from error


def open_file(path: StrPath, kind: FileKind) -> BinaryIO:
    """Open a regular file of bounded size.

    Named pipes and devices are rejected, since reading them could block.

    Raises:
        UserError: `kind.missing_error` if the file does not exist; `kind.error` if it is not a
            regular file, is too large, or cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        _check_mode(os.stat(path).st_mode, path, kind)  # opening a device may have side effects
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise kind.missing_error(f"{kind.name} {path} does not exist: {kind.missing}") from None
    except OSError as error:
        reason = error.strerror or errno.errorcode.get(error.errno or 0, "unknown error")
        raise kind.broken(path, f"cannot be read ({reason})") from error
    except UserError:  # of `_check_mode`; some are ValueErrors too
        raise
    except ValueError as error:  # a null character in the name
        raise kind.broken(repr(os.fspath(path)), f"cannot be read ({error})") from error
    file = os.fdopen(descriptor, "rb")
    try:
        status = os.fstat(descriptor)
        _check_mode(status.st_mode, path, kind)
        if status.st_size > kind.max_bytes:
            raise kind.broken(
                path,
                f"is not read ({status.st_size / MIB:.0f} MiB, the limit for this kind of file is "
                f"{kind.max_bytes / MIB:.0f})",
            )
    except BaseException:
        file.close()
        raise
    return file


def _check_mode(mode: int, path: StrPath, kind: FileKind) -> None:
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise kind.broken(path, f"cannot be read (it is {what}, not a file)")


def file_size(file: BinaryIO) -> int:
    """Return the size of an open file in bytes."""
    return os.fstat(file.fileno()).st_size


def read_file(path: StrPath, kind: FileKind) -> bytearray:
    """Read a whole file into writable memory.

    Raises:
        UserError: See `open_file`.
    """
    with open_file(path, kind) as file, reading(path, kind, "cannot be read"):
        data = bytearray(file_size(file))
        number = file.readinto(data)  # type: ignore[attr-defined]
        return data if number == len(data) else data[:number]


class ArrayHeader(NamedTuple):
    """Header of a stored array.

    Attributes:
        shape: Stored shape.
        dtype: Stored data type.
        fortran_order: Whether the first axis is the fastest.
        nbytes: Size of the elements in memory and, uncompressed, in the file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    nbytes: int


class StoredArrays:
    """Arrays of numbers in an open `.npz` or `.npy` file; see `open_arrays`.

    Attributes:
        names: Names of the arrays; the array of a `.npy` file is called `""`.
    """

    def __init__(self, file: BinaryIO, path: StrPath, kind: FileKind, max_bytes: int) -> None:
        self._path, self._kind, self._left = path, kind, max_bytes
        self._limit = max_bytes
        self._file = file
        self._archive: zipfile.ZipFile | None = None
        with reading(path, kind):
            if file.read(len(_NPY_MAGIC)) == _NPY_MAGIC:
                self.names: tuple[str, ...] = ("",)
            else:
                _check_zip_directory(file)
                self._archive = zipfile.ZipFile(file)
                names = self._archive.namelist()
                self.names = tuple(name.removesuffix(".npy") for name in names)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def header(self, name: str) -> ArrayHeader:
        """Return the header of an array.

        Raises:
            UserError: `kind.error` if the header is broken, the elements are not numbers, or the
                file is too short for the shape.
        """
        with self._open(name) as (stream, stored):
            return self._header(stream, stored)

    def read(self, name: str) -> npt.NDArray[Any]:
        """Read an array.

        Raises:
            UserError: As for `header`; also if the arrays read so far and this one together exceed
                `max_bytes`, or the content is damaged.
        """
        with self._open(name) as (stream, stored):
            header = self._header(stream, stored)
            self._left -= header.nbytes
            if self._left < 0:
                raise self._kind.broken(
                    self._path,
                    f"is rejected (with array '{name}' of {header.shape} its arrays have more than "
                    f"{self._limit / MIB:.0f} MiB)",
                )
            flat = np.empty(math.prod(header.shape), dtype=header.dtype)
            with reading(self._path, self._kind):
                _fill(stream, flat.view(np.uint8).data)
            if header.dtype.kind == "b":  # bytes other than 0 and 1 would be counted wrongly
                flat = flat.view(np.uint8) != 0
            return flat.reshape(header.shape, order="F" if header.fortran_order else "C")

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        """Yield the bytes of a `.npy` file and their number."""
        if self._archive is None:
            self._file.seek(0)
            yield self._file, file_size(self._file)
            return
        with reading(self._path, self._kind):
            stored = name if name in self._archive.NameToInfo else f"{name}.npy"
            member = self._archive.getinfo(stored)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # Other formats allocate memory based only on their header.
                raise ValueError("compressed by a method that numpy does not use")
            stream: Any = self._archive.open(member)
        with stream:
            yield stream, member.file_size

    def _header(self, stream: BinaryIO, stored_bytes: int) -> ArrayHeader:
        with reading(self._path, self._kind):
            shape, fortran_order, dtype, header_bytes = _parse_array_header(stream)
        if dtype.kind not in "biuf":
            raise self._kind.broken(self._path)
        nbytes = math.prod(shape) * dtype.itemsize
        if min(shape, default=1) < 0 or header_bytes + nbytes != stored_bytes:
            raise self._kind.broken(self._path)
        return ArrayHeader(shape, dtype, fortran_order, nbytes)

    def close(self) -> None:
        """Close the file."""
        if self._archive is not None:
            self._archive.close()
        self._file.close()


@contextlib.contextmanager
def open_arrays(path: StrPath, kind: FileKind, max_bytes: int) -> Iterator[StoredArrays]:
    """Open a `.npz` or `.npy` file; shapes can be checked before arrays are read.

    Args:
        path: Path of the file.
        kind: Kind of the file.
        max_bytes: Limit of the total size of the arrays that are read.

    Raises:
        UserError: See `open_file`; `kind.error` if it is not a numpy file.
    """
    with open_file(path, kind) as file:
        arrays = StoredArrays(file, path, kind, max_bytes)
        try:
            yield arrays
        finally:
            arrays.close()


def _parse_array_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, order and dtype from the start of a `.npy` file, and the header's size."""
    start = stream.read(8)
    if start[:6] != _NPY_MAGIC or start[6:] not in (b"\x01\x00", b"\x02\x00"):
        raise ValueError("not a numpy array")
    length_bytes = 2 if start[6] == 1 else 4
    stored_length = stream.read(length_bytes)
    length = int.from_bytes(stored_length, "little")
    if length > _MAX_ARRAY_HEADER:
        raise ValueError("the header is too long")
    text = io.BytesIO(stored_length + stream.read(length))
    parse = (
        np.lib.format.read_array_header_1_0
        if start[6] == 1
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran_order, dtype = parse(text)
    return shape, fortran_order, dtype, 8 + length_bytes + length


def _fill(stream: BinaryIO, target: memoryview) -> None:
    """Read exactly as many bytes as `target` has; the archive verifies its checksum at the end."""
    at = 0
    while at < len(target):
        number = stream.readinto(target[at : at + _CHUNK])  # type: ignore[attr-defined]
        if not number:
            raise EOFError("the file ends early")
        at += number


def _check_zip_directory(file: BinaryIO) -> None:
    """Raise ValueError if the directory of a zip archive is missing or too large."""
    size = file_size(file)
    file.seek(max(0, size - _ZIP_END_BYTES - 0xFFFF))
    tail = file.read()
    at = len(tail) - _ZIP_END_BYTES
    if at < 0 or tail[at : at + 4] != _ZIP_END:
        at = tail.rfind(_ZIP_END)  # a comment follows
    if at < 0 or len(tail) < at + _ZIP_END_BYTES:
        raise ValueError("not a zip archive")
    if tail[max(at - 20, 0) : max(at - 20, 0) + 4] == _ZIP64_LOCATOR:
        raise ValueError("an archive of more than 4 GiB")
    if int.from_bytes(tail[at + 12 : at + 16], "little") > _MAX_ZIP_DIRECTORY:
        raise ValueError("the archive has too many members")
    file.seek(0)


_limit_lock = threading.Lock()


@contextlib.contextmanager
def limited_memory(max_bytes: int) -> Iterator[None]:
    """Limit the memory that the process may allocate to `max_bytes` more than it has now.

    A pickle of a few bytes can request any amount of memory, and no check is cheaper than reading
    it. Allocations beyond the limit raise MemoryError. The limit applies to all threads, so keep
    the block short. It works on Linux only.
    """
    with _limit_lock:
        used = _writable_bytes()
        if used is None:
            yield
            return
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limits = [limit for limit in (used + max_bytes, soft, hard) if limit >= 0]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _writable_bytes() -> int | None:
    """Return the size of the process's private writable memory, or None if unknown."""
    try:
        line = re.search(rb"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_bytes(), re.M)
    except OSError:
        return None
    return int(line[1]) * 1024 if line else None


def truncated(path: StrPath, kind: FileKind, problem: str) -> UserError:
    """Return the error about a file that ends early."""
    return kind.broken(path, f"is truncated ({problem})", TruncatedDataError)
