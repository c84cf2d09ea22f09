"""Record-by-record reading of JSON arrays that are larger than memory."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from loaders.errors import BadDataError
from loaders.safe_reading import FileKind, file_size, open_file

_CHUNK_CHARACTERS = 1 << 20
# nuScenes' longest records have a few kilobytes: a longer record is invalid.
_LONGEST_RECORD = 1 << 21
_SEPARATORS = " \t\r\n,"
_RESTORE = "restore it from the original archive"
# The largest table of nuScenes' trainval has 2 GB.
_TABLE = FileKind("table", _RESTORE, _RESTORE, max_bytes=64 << 30)


def iter_records(
    path: Path, progress: bool = False, keys: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON array `[{...}, {...}, ...]` in constant memory.

    Args:
        path: A table of nuScenes.
        progress: Whether to show a bar (in bytes).
        keys: Keys that every record must have.

    Raises:
        MissingDataError: The file does not exist.
        BadDataError: The file is not an array of objects, ends early, or a record lacks a key.
    """
    try:
        with open_file(path, _TABLE) as file:
            options = dict(unit="B", unit_scale=True, leave=False, disable=not progress)
            with tqdm(total=file_size(file), desc=path.name, **options) as bar:
                records = _records_of(io.TextIOWrapper(file, encoding="utf-8"), path, bar)
                for number, record in enumerate(records):
                    for key in keys:
                        if key not in record:
                            raise _broken(path, f"record {number} lacks '{key}'")
                    yield record
    except UnicodeDecodeError as error:
        raise _broken(path, "it is not UTF-8 text") from error


def _records_of(file: TextIO, path: Path, bar: tqdm) -> Iterator[dict[str, Any]]:
    decode = json.JSONDecoder().raw_decode
    text = file.read(_CHUNK_CHARACTERS).lstrip()
    if not text.startswith("["):
        raise _broken(path, "it is not a JSON array")
    at = 1
    while True:
        while at < len(text) and text[at] in _SEPARATORS:
            at += 1
        if text.startswith("{", at):
            try:
                record, at = decode(text, at)
                yield record
                continue
            except json.JSONDecodeError as error:
                if len(text) - at > _LONGEST_RECORD:
                    raise _broken(path, str(error)) from error
            except (RecursionError, ValueError) as error:  # lists nested too deeply, long numbers
                raise _broken(path, "a record is too large") from error
        elif text.startswith("]", at):
            return
        elif at < len(text):
            raise _broken(path, f"'{text[at]}' where an object should start")
        more = file.read(_CHUNK_CHARACTERS)
        if not more:
            raise _broken(path, "it ends early")
        bar.update(len(more))
        text, at = text[at:] + more, 0


def _broken(path: Path, why: str) -> BadDataError:
    return BadDataError(f"the table {path} cannot be read ({why}): {_RESTORE}")
