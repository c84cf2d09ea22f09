"""Write info files (poses, calibration, camera and LiDAR sweeps per key frame) from nuScenes.

    python scripts/gen_sweep_info.py --data-root data/nuscenes --version v1.0-trainval

Reads the nuScenes tables only (no images) and writes ``nuscenes_infos_{train,val}_sweep.pkl``
(v1.0-trainval), ``nuscenes_infos_test_sweep.pkl`` (v1.0-test) or
``nuscenes_infos_{train,val}_mini_sweep.pkl`` (v1.0-mini) into the data root. Paths are relative to
it, so the data set may move. Readers: ``loaders/info_io.py``.

With ``--from-mmdet3d FILE`` the key frames, their poses and annotations come from an old-style info
file of mmdet3d's converter, and ``NAME_sweep.pkl`` is written; the tables are still needed for what
such files lack (names of the scenes, camera sweeps).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loaders.errors import BadDataError
from loaders.info_io import InfoWriter, info_file_name, infos_fragment
from scripts.runtime.atomic_write import check_folder_target
from scripts.runtime.command_line import CommandParser, number_from, run_command
from scripts.runtime.errors import ConfigError
from scripts.sweep_infos.old_infos import complete_old_info, read_old_infos
from scripts.sweep_infos.scenes import SceneReader
from scripts.sweep_infos.tables import Tables, open_tables

# Splits and what the devkit calls them, by nuScenes version.
SPLITS = {
    "v1.0-trainval": {"train": "train", "val": "val"},
    "v1.0-test": {"test": "test"},
    "v1.0-mini": {"train": "mini_train", "val": "mini_val"},
}
# Layout of the info files; raise it when readers must know the difference.
FORMAT = 2

# What worker processes work on. They are forked, so the tables are not copied.
_make_fragment: Callable[[int], tuple[bytes, int]] | None = None


def _in_worker(scene: int) -> tuple[bytes, int]:
    assert _make_fragment is not None
    return _make_fragment(scene)


def _fragments(
    make: Callable[[int], tuple[bytes, int]], scenes: Sequence[int], workers: int
) -> Iterator[tuple[bytes, int]]:
    """Yields what ``make`` gives for each scene, in order, made by so many processes."""
    global _make_fragment
    if workers < 2 or len(scenes) < 2:
        yield from map(make, scenes)
        return
    _make_fragment = make
    fork = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(min(workers, len(scenes)), mp_context=fork) as pool:
            yield from pool.map(_in_worker, scenes, chunksize=4)
    except BrokenProcessPool as error:
        raise ConfigError(
            "a worker process was killed, perhaps for lack of memory: try --workers 0"
        ) from error
    finally:
        _make_fragment = None


def write_scenes(
    tables: Tables,
    scenes: Sequence[int],
    path: Path,
    metadata: Mapping[str, Any],
    workers: int = 0,
    progress: bool = True,
    old_infos: Mapping[str, Mapping[str, Any]] | None = None,
) -> int:
    """Writes the info file of some scenes.

    Args:
        tables: Tables of the data set.
        scenes: Indices of the scenes, in the order wanted.
        path: File to write.
        metadata: Header, completed with what the tables know.
        workers: Processes; 0 works in this one. The file does not depend on it.
        progress: Whether to show a progress bar.
        old_infos: Infos of mmdet3d's converter by sample token; key frames without one are left
            out.

    Returns:
        Number of key frames.
    """
    reader = SceneReader(tables)

    def make(scene: int) -> tuple[bytes, int]:
        infos = reader.infos(scene)
        if old_infos is not None:
            known = [info for info in infos if info["token"] in old_infos]
            infos = [complete_old_info(old_infos[info["token"]], info) for info in known]
        return infos_fragment(infos), len(infos)

    total = 0
    header = {"version": tables.version, "data_root": str(tables.data_root), "format": FORMAT}
    with InfoWriter(path, {**header, **metadata}) as writer:
        made = _fragments(make, scenes, workers)
        for fragment, count in tqdm(
            made, desc=path.name, total=len(scenes), unit="scene", disable=not progress
        ):
            writer.add_scene(fragment, count)
            total += count
    return total


def write_split(
    tables: Tables, split: str, path: Path, workers: int = 0, progress: bool = True
) -> tuple[int, int]:
    """Writes the info file of a split.

    Args:
        tables: Tables of the data set.
        split: Name within ``nuscenes.utils.splits`` (train, val, test, mini_train, mini_val).
        path: File to write.
        workers: Processes; 0 works in this one.
        progress: Whether to show a progress bar.

    Returns:
        Number of scenes and of key frames.

    Raises:
        BadDataError: If the tables have none of the split's scenes.
    """
    from nuscenes.utils.splits import create_splits_scenes  # slow to import

    names = set(create_splits_scenes()[split])
    scenes = [i for i, scene in enumerate(tables.scenes) if scene["name"] in names]
    scenes.sort(key=lambda i: tables.scenes[i]["name"])
    if not scenes:
        raise BadDataError(
            f"the tables in {tables.data_root / tables.version} have no scene of the split "
            f"{split}: choose another --version"
        )
    metadata = {"split": split}
    return len(scenes), write_scenes(tables, scenes, path, metadata, workers, progress)


def write_from_mmdet3d(
    tables: Tables, source: Path, path: Path, workers: int = 0, progress: bool = True
) -> tuple[int, int]:
    """Writes the info file of the key frames of an old-style info file of mmdet3d.

    Returns:
        Number of scenes and of key frames.

    Raises:
        MissingDataError: If ``source`` does not exist.
        BadDataError: If ``source`` is broken or names key frames that the tables lack.
    """
    old = read_old_infos(source)
    unknown = [token for token in old if token not in tables.sample_index]
    if unknown:
        raise BadDataError(
            f"{source} names key frame {unknown[0]} (and {len(unknown) - 1} more) that the tables "
            f"in {tables.data_root / tables.version} lack: choose the --version it was made for"
        )
    scenes = [
        i for i, samples in enumerate(tables.samples) if any(s["token"] in old for s in samples)
    ]
    scenes.sort(key=lambda i: tables.scenes[i]["name"])
    metadata = {"source": source.name}
    return len(scenes), write_scenes(tables, scenes, path, metadata, workers, progress, old)


def command_parser() -> CommandParser:
    """Returns the command line."""
    parser = CommandParser(__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("data/nuscenes"))
    parser.add_argument("--version", choices=[*SPLITS], default="v1.0-trainval")
    parser.add_argument("--out-dir", type=Path, help="default: the data root")
    parser.add_argument(
        "--from-mmdet3d",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="old-style info files of mmdet3d's converter to complete",
    )
    default = min(8, os.cpu_count() or 1)
    workers = "processes, 0: work in the main one; the files do not depend on it"
    parser.add_argument("--workers", type=number_from(0), default=default, help=workers)
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    return parser


def write_info_files(args: argparse.Namespace) -> None:
    """Writes the info files of all splits of a version, or of the files to complete."""
    progress = not args.no_progress
    check_folder_target("--out-dir", args.out_dir or args.data_root)
    tables = open_tables(args.data_root, args.version, progress)
    out_dir = args.out_dir or args.data_root
    os.makedirs(out_dir, exist_ok=True)
    for source in args.from_mmdet3d or []:
        path = out_dir / f"{source.stem}_sweep.pkl"
        scenes, samples = write_from_mmdet3d(tables, source, path, args.workers, progress)
        print(f"{path}: {samples} samples of {scenes} scenes")
    for split, devkit_split in {} if args.from_mmdet3d else SPLITS[args.version].items():
        path = out_dir / info_file_name(args.version, split)
        scenes, samples = write_split(tables, devkit_split, path, args.workers, progress)
        print(f"{path}: {samples} samples of {scenes} scenes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(command_parser(), write_info_files, arguments)
