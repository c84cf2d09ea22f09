"""Writing of a data set: scene by scene in worker processes, resumable.

While a data set is being made, `toy_nuscenes.json` in its root contains `complete: false` and the
tables do not exist; the records of finished scenes are in `.scenes/`. A run with the same options
continues from there. An older data set without some labels gets them; its other files are not
changed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from scripts.runtime.atomic_write import write_json
from scripts.runtime.errors import describe
from scripts.runtime.host_allocator import keep_freed_memory
from scripts.runtime.parent_process import end_with_parent
from scripts.toy_nuscenes.errors import DataSetError
from scripts.toy_nuscenes.files import write_png
from scripts.toy_nuscenes.frames import add_labels, generate_scene, lacks_labels
from scripts.toy_nuscenes.layout import Layout, make_layout
from scripts.toy_nuscenes.options import Options
from scripts.toy_nuscenes.recipes import make_recipe
from scripts.toy_nuscenes.tables import (
    TABLE_NAMES,
    SceneNames,
    Tables,
    common_tables,
    map_path,
    map_tables,
)

RECORD = "toy_nuscenes.json"
SCENES_PER_PLACE = 10
_PLACE_MARGIN_M = 20.0
_MAP_RESOLUTION_M = 0.1  # nuScenes map masks have 10 pixels per metre
Progress = Callable[[int], None]
# A scene, its place, and its shift on the map; or a finished scene without some labels.
Job = tuple[SceneNames, int, np.ndarray] | SceneNames


def _read_record(root: Path) -> dict | None:
    path = root / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise DataSetError(
            f"{path} is not readable JSON ({error}); delete {root} and run the command again"
        ) from error
    if not isinstance(record, dict):
        raise DataSetError(f"{path} holds no JSON object; delete {root} and run the command again")
    return record


def prepare(root: Path, options: Options, overwrite: bool) -> bool:
    """Prepare the output folder; return whether it already holds the complete data set.

    Raises:
        DataSetError: the folder holds other files.
    """
    if root.exists() and not root.is_dir():
        raise DataSetError(f"{root} is a file; choose a folder for --out")
    record = _read_record(root) if root.exists() else None
    if record is None and root.exists() and any(root.iterdir()):
        raise DataSetError(
            f"{root} is not empty and was not made by this command; choose another folder for --out"
        )
    if record is not None and record.get("options") != options.as_dict():
        if not overwrite:
            theirs, ours = record.get("options", {}), options.as_dict()
            differ = ", ".join(
                f"{k} is {theirs.get(k)} there, but {v} was requested"
                for k, v in ours.items()
                if theirs.get(k) != v
            )
            raise DataSetError(
                f"{root} holds a data set made with other options ({differ}); "
                "choose another folder for --out, or pass --overwrite to replace it"
            )
        shutil.rmtree(root)
        record = None
    if record is not None and record.get("complete"):
        return True
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / RECORD, dict(options=options.as_dict(), complete=False))
    return False


def place_scenes(layouts: list[Layout]) -> list[tuple[int, np.ndarray]]:
    """Lay the scenes out next to each other.

    Returns:
        Per scene its place and its shift [2], global minus scene coordinates.
    """
    out = []
    for start in range(0, len(layouts), SCENES_PER_PLACE):
        group = layouts[start : start + SCENES_PER_PLACE]
        pitch = np.max([layout.upper - layout.lower for layout in group], 0) + _PLACE_MARGIN_M
        for k, layout in enumerate(group):
            corner = np.array([k % 5, k // 5]) * pitch + _PLACE_MARGIN_M / 2
            out.append((start // SCENES_PER_PLACE, corner - layout.lower))
    return out


def _write_masks(
    root: Path, options: Options, places: list[tuple[int, np.ndarray]], masks: list[dict]
) -> None:
    """Join the road masks of the scenes to one image per place, 10 pixels per metre, north up."""
    for place in sorted({p for p, _ in places}):
        members = [k for k, (p, _) in enumerate(places) if p == place]
        far = np.max(
            [
                np.asarray(masks[k]["corner"]) + np.asarray(masks[k]["size"]) * _MAP_RESOLUTION_M
                for k in members
            ],
            0,
        )
        columns, rows = np.ceil((far + _PLACE_MARGIN_M / 2) / _MAP_RESOLUTION_M).astype(int)
        canvas = np.zeros((rows, columns), np.uint8)
        for k in members:
            image = cv2.imread(str(root / ".scenes" / masks[k]["file"]), cv2.IMREAD_GRAYSCALE)
            column, row = np.round(np.asarray(masks[k]["corner"]) / _MAP_RESOLUTION_M).astype(int)
            canvas[row : row + image.shape[0], column : column + image.shape[1]] = image
        write_png(root / map_path(options.seed, place), canvas[::-1])


def _merge(parts: list[Tables]) -> Tables:
    out: Tables = {name: [] for name in TABLE_NAMES}
    for part in parts:
        for name, records in part.items():
            out[name].extend(records)
    return out


def _finish(root: Path, options: Options, places: list[tuple[int, np.ndarray]]) -> None:
    """Write masks and tables from the records of the finished scenes, and mark completion."""
    results = [
        json.loads((root / ".scenes" / f"{name}.json").read_text())
        for name in options.scene_names()
    ]
    _write_masks(root, options, places, [result["mask"] for result in results])
    logs: dict[int, list[str]] = {}
    for (place, _), result in zip(places, results, strict=True):
        logs.setdefault(place, []).append(result["tables"]["log"][0]["token"])
    tables = _merge(
        [
            common_tables(options),
            *(result["tables"] for result in results),
            map_tables(options, logs),
        ]
    )
    folder, temporary = root / options.version, root / f".{options.version}"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    for name, records in tables.items():
        write_json(temporary / f"{name}.json", records)
    os.replace(temporary, folder)
    write_json(root / RECORD, dict(options=options.as_dict(), complete=True))
    shutil.rmtree(root / ".scenes")


def _do(root: Path, options: Options, job: Job, progress: Progress) -> None:
    if isinstance(job, SceneNames):
        add_labels(root, options, job, progress)
    else:
        generate_scene(root, options, *job, progress)


def _work(
    root: str, options: Options, jobs: multiprocessing.Queue, news: multiprocessing.Queue
) -> None:
    """Make scenes in a worker process until none are left.

    Sends progress counts, then None, an error that the user can correct, or a traceback as text.
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process stops the workers
    keep_freed_memory()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        while (job := jobs.get()) is not None:
            _do(Path(root), options, job, news.put)
        news.put(None)
    except BaseException as error:
        is_users = describe(error) is not None
        news.put(error if is_users else traceback.format_exc())


@dataclass(frozen=True)
class _Crew:
    """Worker processes, the queue of their jobs (None: no more) and the queue of their messages."""

    workers: list[multiprocessing.process.BaseProcess]
    jobs: multiprocessing.Queue
    news: multiprocessing.Queue


@contextmanager
def _crew(count: int, root: Path, options: Options) -> Iterator[_Crew]:
    """Start worker processes; stop them at exit."""
    context = multiprocessing.get_context("spawn")
    jobs, news = context.Queue(), context.Queue()
    arguments = (str(root), options, jobs, news)
    workers: list[multiprocessing.process.BaseProcess] = [
        context.Process(target=_work, args=arguments, daemon=True) for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    try:
        yield _Crew(workers, jobs, news)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _follow(crew: _Crew, todo: list[Job], progress: Progress) -> None:
    """Distribute the jobs and report progress until all are done."""
    running = len(crew.workers)
    for job in [*todo, *([None] * running)]:
        crew.jobs.put(job)
    while running:
        try:
            message = crew.news.get(timeout=2)
        except queue.Empty:
            if any(worker.exitcode for worker in crew.workers):
                raise DataSetError(
                    "a worker process was killed, perhaps because memory ran out: finished scenes "
                    "are kept, run the command again with fewer --workers"
                ) from None
            continue
        if message is None:
            running -= 1
        elif isinstance(message, Exception):
            raise message
        elif isinstance(message, str):
            raise RuntimeError(f"a worker process failed:\n{message}")
        else:
            progress(message)


def _places(options: Options) -> list[tuple[int, np.ndarray]]:
    layouts = [
        make_layout(make_recipe(options.seed, k), options.duration_s) for k in range(options.scenes)
    ]
    return place_scenes(layouts)


def generate(
    root: Path,
    options: Options,
    *,
    workers: int = 2,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> bool:
    """Make the data set in `root`, or complete it.

    Args:
        root: data root.
        options: parameters of the data set.
        workers: number of processes; 0 uses this one. The files do not depend on it.
        overwrite: replace a data set that was made with other options.
        progress: called with the number of newly finished key frames.

    Returns:
        Whether there was anything to do.

    Raises:
        DataSetError: the folder holds other files, or a worker process was killed.
        RuntimeError: a worker process failed.
    """
    is_complete = prepare(root, options, overwrite)
    progress = progress or (lambda _: None)
    names = [SceneNames(options, k, name) for k, name in enumerate(options.scene_names())]
    records = [root / ".scenes" / f"{name.name}.json" for name in names]
    todo = [k for k, record in enumerate(records) if not (is_complete or record.exists())]
    late = [
        name for k, name in enumerate(names) if k not in todo and lacks_labels(root, options, name)
    ]
    if is_complete and not late:
        return False
    progress(options.samples * (len(names) - len(todo) - len(late)))
    with _crew(min(workers, len(todo) + len(late)), root, options) as crew:
        places = _places(options)  # while the workers start
        jobs: list[Job] = [*late, *((names[k], *places[k]) for k in todo)]
        if crew.workers:
            _follow(crew, jobs, progress)
        else:
            for job in jobs:
                _do(root, options, job, progress)
    if not is_complete:
        _finish(root, options, places)
    return True
