"""Damage to files and their content, drawn from a seeded generator."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Rng = np.random.Generator
_EXTREMES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x0FFFFFFF, 0xFFFF)


def _truncate(data: bytearray, rng: Rng) -> bytearray:
    return data[: rng.integers(0, len(data) + 1)]


def _flip_bits(data: bytearray, rng: Rng) -> bytearray:
    for at in rng.integers(0, len(data), rng.integers(1, 9)):
        data[at] ^= 1 << int(rng.integers(8))
    return data


def _overwrite_header(data: bytearray, rng: Rng) -> bytearray:
    number = int(rng.integers(1, 129))
    data[:number] = rng.bytes(number)
    return data


def _fill_with_zeros(data: bytearray, rng: Rng) -> bytearray:
    start, end = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    data[start:end] = bytes(end - start)
    return data


def _overwrite_number(data: bytearray, rng: Rng) -> bytearray:
    at = int(rng.integers(0, len(data)))
    data[at : at + 4] = int(rng.choice(_EXTREMES)).to_bytes(4, "little")
    return data


def _insert(data: bytearray, rng: Rng) -> bytearray:
    at = int(rng.integers(0, len(data) + 1))
    data[at:at] = rng.bytes(int(rng.integers(1, 64)))
    return data


def _delete(data: bytearray, rng: Rng) -> bytearray:
    at = int(rng.integers(0, len(data)))
    del data[at : at + int(rng.integers(1, 64))]
    return data


def _repeat(data: bytearray, rng: Rng) -> bytearray:
    start, end = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    at = int(rng.integers(0, len(data) + 1))
    data[at:at] = data[start:end]
    return data


def _overwrite_all(data: bytearray, rng: Rng) -> bytearray:
    return bytearray(rng.bytes(int(rng.integers(0, len(data) + 1))))


DAMAGES: Mapping[str, Callable[[bytearray, Rng], bytearray]] = {
    "truncated": _truncate,
    "bits flipped": _flip_bits,
    "header overwritten": _overwrite_header,
    "filled with zeros": _fill_with_zeros,
    "number overwritten": _overwrite_number,
    "bytes inserted": _insert,
    "bytes deleted": _delete,
    "bytes repeated": _repeat,
    "random bytes": _overwrite_all,
}


def damaged(data: bytes, rng: Rng) -> tuple[str, bytes]:
    """Return the name of a damage and a damaged copy of a file's bytes (at least one byte)."""
    name = str(rng.choice(list(DAMAGES)))
    return name, bytes(DAMAGES[name](bytearray(data), rng))


def with_wrong_value(content: Any, rng: Rng, junk: Sequence[Any]) -> tuple[str, Any]:
    """Return a copy of nested dicts and lists with one entry dropped or replaced by junk.

    Args:
        content: Dicts and lists with at least one entry.
        rng: Generator that selects the entry and the junk.
        junk: Possible replacements.

    Returns:
        A description of the change, and the copy.
    """
    content = copy.deepcopy(content)
    place, way = content, ""
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[int(rng.integers(len(keys)))]
        way += f"[{key!r}]"
        below = place[key]
        if not isinstance(below, dict | list) or not below or rng.random() < 0.15:
            break
        place = below
    if rng.random() < 0.2:
        del place[key]
        return f"{way} dropped", content
    place[key] = junk[int(rng.integers(len(junk)))]
    return f"{way} = {place[key]!r:.40}", content
