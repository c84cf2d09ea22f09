"""Checksums of checkpoint files, which torch.load does not verify."""

from __future__ import annotations

import struct
import zipfile
import zlib
from typing import BinaryIO

_ZIP_MAGIC = b"PK\x03\x04"
# Errors of `zipfile` for an archive with altered or truncated headers or contents.
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

    Every entry of such a file has a CRC-32, which detects any single altered byte.

    Args:
        stream: An open file at its start; its position is restored. A file in torch's older format
            has no checksums and passes.

    Returns:
        Description of the damage; None for an intact archive.
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
