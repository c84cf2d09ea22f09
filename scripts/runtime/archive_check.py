"""Checksums of checkpoint files: torch.load does not look at them."""

from __future__ import annotations

import struct
import zipfile
import zlib
from typing import BinaryIO

_ZIP_MAGIC = b"PK\x03\x04"
# What `zipfile` raises for an archive whose headers or contents were altered or cut off.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    UnicodeError,
    ValueError,
)
_BLOCK = 1 << 22


def damage_of(stream: BinaryIO) -> str | None:
    """Describe the first damage of a checkpoint in torch's archive format.

    Every entry of such a file has a CRC-32, which finds any single altered byte.

    Args:
        stream: An open file, at its start, where it is left. One of torch's older format, which has
            no checksums, passes.

    Returns:
        What is wrong, None for a whole archive.
    """
    is_archive = stream.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    stream.seek(0)
    if not is_archive:
        return None
    try:
        with zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                _check_entry(archive, entry)
    except _DAMAGE as error:
        return str(error) or type(error).__name__
    finally:
        stream.seek(0)
    return None


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    # torch stores without compression; a compressed entry could unpack to any size.
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise zipfile.BadZipFile(f"{entry.filename} is compressed")
    with archive.open(entry) as content:
        while content.read(_BLOCK):
            pass
