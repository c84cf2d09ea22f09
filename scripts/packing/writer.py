"""Write a packed data root: images, labels, links to the rest, and the index."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from loaders.packed import INDEX_NAME, StoredSize
from loaders.transforms.decode import Image, read_image
from models.ops import resize_crop
from scripts.packing.plan import PackingPlan
from scripts.runtime.atomic_write import write_atomically, write_json
from scripts.runtime.errors import ConfigError
from scripts.runtime.parent_process import end_with_parent

DEFAULT_QUALITY = 90
# Files of a task: enough to hide its cost, few enough for a smooth progress bar.
_CHUNK = 32
_ESTIMATE_IMAGES, _ESTIMATE_LABELS = 60, 12

# Plan and output folder for worker processes. These are forked, so the plan is not copied.
_work: tuple[PackingPlan, Path] | None = None


def pack_image(path: str | Path, size: StoredSize, quality: int) -> bytes:
    """Return the stored part of an image as a JPEG file.

    Args:
        path: The image.
        size: How to store it.
        quality: Quality of the JPEG file.

    Raises:
        MissingDataError: If the image does not exist.
        BadDataError: If it is broken or of another size.
    """
    image = read_image(str(path), raw_hw=size.raw_hw)
    return encode_jpeg(shrink_image(image, size), quality)


def shrink_image(image: Image, size: StoredSize) -> Image:
    """Return the stored rows of an image [H, W, 3], at the stored size."""
    out = np.empty((*size.stored_hw, 3), np.uint8)
    resize_crop(
        torch.from_numpy(out),
        torch.from_numpy(image),
        size.raw_hw,
        (0, 0),
        size.full_hw,
        (size.top, 0),
    )
    return out


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Return an image uint8 [H, W, 3] BGR as a JPEG file with chroma at half size."""
    # Huffman tables for the image make the file a little smaller and its decoding a little faster.
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    is_done, data = cv2.imencode(".jpg", image, options)
    assert is_done
    return data.tobytes()


def pack(plan: PackingPlan, out: Path, workers: int) -> tuple[int, int]:
    """Pack all files that do not exist yet.

    Args:
        plan: What to pack.
        out: Data root to write.
        workers: Number of processes; 0 uses this one. The files do not depend on it.

    Returns:
        The number of files packed, and of files that existed.

    Raises:
        ConfigError: If `out` contains other files, or a process was killed.
    """
    _claim(plan, out)
    files = [*plan.images, *plan.labels]
    made = 0
    with tqdm(total=len(files), desc="packing", unit="file", disable=None) as bar:
        for number, total in _results(plan, out, files, workers):
            made += number
            bar.update(total)
    _link_rest(plan.source, out, {Path(name) for name in files})
    write_json(out / INDEX_NAME, {**plan.index, "is_complete": True}, indent=1)
    return made, len(files) - made


def estimate(plan: PackingPlan, workers: int) -> str:
    """Pack a few files without writing them; return a sentence with size and time of all files."""
    rng = random.Random(0)
    images = rng.sample(sorted(plan.images), min(_ESTIMATE_IMAGES, len(plan.images)))
    labels = rng.sample(sorted(plan.labels), min(_ESTIMATE_LABELS, len(plan.labels)))
    size = seconds = 0.0
    for names, total in ((images, len(plan.images)), (labels, len(plan.labels))):
        start = time.perf_counter()
        number = sum(len(_packed(plan, name) or b"") for name in names)
        share = total / max(1, len(names))
        seconds += (time.perf_counter() - start) * share
        size += number * share
    return (
        f"{len(plan.images)} images and {len(plan.labels)} label files: about "
        f"{size / 1e9:.3g} GB, {seconds / workers / 60:.2g} minutes with {workers} processes"
    )


def _claim(plan: PackingPlan, out: Path) -> None:
    """Prepare the output folder.

    Raises:
        ConfigError: If it contains other files.
    """
    if out.resolve().is_relative_to(plan.source):
        raise ConfigError(f"--out {out} lies in the data root {plan.source}: choose another folder")
    index = out / INDEX_NAME
    if not index.is_file():
        if out.exists() and any(out.iterdir()):
            raise ConfigError(
                f"--out {out} is not empty and was not made by this command: choose another folder"
            )
        write_json(index, {**plan.index, "is_complete": False}, indent=1)
        return
    try:
        there = dict(json.loads(index.read_text()))
    except (ValueError, TypeError, OSError):
        there = {}
    recipe = plan.recipe
    differ = [key for key in recipe if there.get(key) != recipe[key]]
    if differ:
        raise ConfigError(
            f"--out {out} holds images that were packed in another way ({', '.join(differ)} "
            "differ): choose another folder"
        )


def _results(
    plan: PackingPlan, out: Path, files: Sequence[str], workers: int
) -> Iterator[tuple[int, int]]:
    """Pack files; yield for every chunk the number of packed files and of all files."""
    global _work
    chunks = [files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK)]
    _work = (plan, out)
    if workers < 1:
        yield from map(_pack_chunk, chunks)
        return
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(min(workers, max(1, len(chunks))), fork, _start_worker)
    try:
        for task in as_completed([pool.submit(_pack_chunk, chunk) for chunk in chunks]):
            yield task.result()
    except BrokenProcessPool as error:
        raise ConfigError(
            "a worker process was killed, perhaps for lack of memory: run the same command again "
            "with fewer --workers, it continues where it stopped"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        _work = None


def _start_worker() -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the pool
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _pack_chunk(names: Sequence[str]) -> tuple[int, int]:
    """Pack the missing files of a chunk; return their number and the length of the chunk."""
    assert _work is not None
    plan, out = _work
    made = 0
    for name in names:
        target = out / name
        if target.is_file() and target.stat().st_size:
            continue
        data = _packed(plan, name)
        if data is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(plan.source / name)
        else:
            write_atomically(target, partial(_write, data))
        made += 1
    return made, len(names)


def _write(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def _packed(plan: PackingPlan, name: str) -> bytes | None:
    """Return the packed file; None for labels that cannot be packed."""
    size = plan.images.get(name)
    if size is not None:
        return pack_image(plan.source / name, size, plan.quality)
    arrays = plan.labels[name](str(plan.source / name))
    return None if arrays is None else _npz(arrays)


def _npz(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _link_rest(source: Path, out: Path, made: set[Path]) -> None:
    """Link the files of the data root that are not packed.

    Folders with packed files are not linked, and neither are other files in them.
    """
    folders = {path.parent for path in made}
    above = {parent for folder in folders for parent in folder.parents}

    def link(folder: Path) -> None:
        for entry in sorted((source / folder).iterdir()):
            inner = folder / entry.name
            if inner in folders or entry.name == INDEX_NAME or (out / inner).is_symlink():
                continue
            if inner in above:
                link(inner)
            else:
                (out / inner).parent.mkdir(parents=True, exist_ok=True)
                os.symlink(entry.resolve(), out / inner)

    link(Path())
