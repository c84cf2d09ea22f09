"""Write info files (poses, calibration, camera and LiDAR sweeps per key frame) from nuScenes.

    python scripts/gen_sweep_info.py --data-root data/nuscenes --version v1.0-trainval

Reads only the nuScenes tables (no images), and writes `nuscenes_infos_{train,val}_sweep.pkl`
(v1.0-trainval), `nuscenes_infos_test_sweep.pkl` (v1.0-test) or
`nuscenes_infos_{train,val}_mini_sweep.pkl` (v1.0-mini) into the data root. Paths are relative to
it, so the data set can be moved. The files are read by `loaders/info_io.py`.

Custom recordings in nuScenes' format may have other versions, scenes and channels. --version is the
folder of the tables. The scenes are given by --split, or by a `splits.json` in the folder of the
tables or in the data root (`{"train": ["scene", ...], "val": [...]}`).

With `--from FILE`, key frames, poses and annotations are taken from an info file of another tool
chain (mmdet3d's converter, BEVDet's, or the sweep scripts of SparseBEV, SparseOcc and OPUS), and
`NAME_sweep.pkl` is written. The tables are still needed for the missing data (names of scenes,
sweeps).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loaders.errors import BadDataError
from loaders.info_io import CAMERAS, InfoWriter, info_file_name, infos_fragment
from scripts.runtime.atomic_write import check_folder_target
from scripts.runtime.command_line import CommandParser, number_from, run_command
from scripts.runtime.errors import ConfigError
from scripts.sweep_infos.other_infos import Info, complete_info, read_other_infos
from scripts.sweep_infos.scenes import SceneReader
from scripts.sweep_infos.splits import SPLITS, choose_splits, devkit_scenes
from scripts.sweep_infos.tables import Tables, open_tables

# Version of the info files' layout; increase it if readers must distinguish layouts.
FORMAT = 2

# Job of the worker processes. They are forked, so the tables are not copied.
_make_fragment: Callable[[int], tuple[bytes, int]] | None = None


def _in_worker(scene: int) -> tuple[bytes, int]:
    assert _make_fragment is not None
    return _make_fragment(scene)


def _fragments(
    make: Callable[[int], tuple[bytes, int]], scenes: Sequence[int], workers: int
) -> Iterator[tuple[bytes, int]]:
    """Yield the results of `make` for each scene, in order, computed by `workers` processes."""
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
            "a worker process was killed, possibly because memory ran out: try --workers 0"
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
    others: Mapping[str, Info | None] | None = None,
) -> int:
    """Write the info file of some scenes.

    Args:
        tables: Tables of the data set.
        scenes: Indices of the scenes, in output order.
        path: File to write.
        metadata: Header, completed from the tables.
        workers: Number of processes; 0 runs in this process. The file does not depend on it.
        progress: Whether to show a progress bar.
        others: Infos of another tool chain by sample token. Other key frames are left out. If an
            info is None, all its data are taken from the tables.

    Returns:
        Number of key frames.
    """
    reader = SceneReader(tables)

    def make(scene: int) -> tuple[bytes, int]:
        infos = reader.infos(scene)
        if others is not None:
            infos = [
                info
                if (other := others[info["token"]]) is None
                else complete_info(other, info, path)
                for info in infos
                if info["token"] in others
            ]
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
    """Write the info file of a split.

    Args:
        tables: Tables of the data set.
        split: Name within `nuscenes.utils.splits` (train, val, test, mini_train, mini_val).
        path: File to write.
        workers: Number of processes; 0 runs in this process.
        progress: Whether to show a progress bar.

    Returns:
        Number of scenes and of key frames.

    Raises:
        BadDataError: The tables have none of the split's scenes.
    """
    names = set(devkit_scenes(split))
    scenes = [i for i, scene in enumerate(tables.scenes) if scene["name"] in names]
    scenes.sort(key=lambda i: tables.scenes[i]["name"])
    if not scenes:
        raise BadDataError(
            f"the tables in {tables.data_root / tables.version} have no scene of the split "
            f"{split}: choose another --version"
        )
    metadata = {"split": split}
    return len(scenes), write_scenes(tables, scenes, path, metadata, workers, progress)


def write_from(
    tables: Tables, source: Path, path: Path, workers: int = 0, progress: bool = True
) -> tuple[int, int]:
    """Write the info file of the key frames of another tool chain's info file.

    Returns:
        Number of scenes and of key frames.

    Raises:
        MissingDataError: `source` does not exist.
        BadDataError: `source` is invalid, or has key frames that the tables lack.
    """
    old = read_other_infos(source)
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
    """Return the parser of the command line."""
    parser = CommandParser(__doc__)
    parser.add_argument("--data-root", type=Path, default=Path("data/nuscenes"))
    version = f"folder of the tables: {', '.join(SPLITS)}, or your own (default: %(default)s)"
    parser.add_argument("--version", default="v1.0-trainval", help=version)
    parser.add_argument("--out-dir", type=Path, help="default: the data root")
    parser.add_argument(
        "--split",
        nargs="+",
        action="append",
        metavar=("NAME", "SCENE"),
        help="scenes of a split, or patterns such as 'night-*'; repeat for each split",
    )
    parser.add_argument("--splits", type=Path, metavar="FILE", help="JSON file with the scenes")
    parser.add_argument("--cameras", nargs="+", metavar="CHANNEL", help="default: all")
    parser.add_argument("--lidar", metavar="CHANNEL", help="default: the only one, or LIDAR_TOP")
    parser.add_argument(
        "--from",
        "--from-mmdet3d",
        dest="sources",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="info files of other tool chains to complete",
    )
    default = min(8, os.cpu_count() or 1)
    workers = "number of processes; 0 runs in the main process; the files do not depend on it"
    parser.add_argument("--workers", type=number_from(0), default=default, help=workers)
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    return parser


def write_info_files(args: argparse.Namespace) -> None:
    """Write the info files of all splits of a version, or of the files to complete."""
    progress = not args.no_progress
    if args.split and args.splits:
        raise ConfigError("--split and --splits both name scenes: leave one out")
    if Path(args.version).name != args.version or args.version in ("", ".", ".."):
        raise ConfigError(f"--version {args.version} is not the name of a folder in the data root")
    check_folder_target("--out-dir", args.out_dir or args.data_root)
    tables = open_tables(args.data_root, args.version, progress, args.cameras, args.lidar)
    out_dir = args.out_dir or args.data_root
    os.makedirs(out_dir, exist_ok=True)
    for source in args.sources or []:
        path = out_dir / f"{source.stem}_sweep.pkl"
        number, samples = write_from(tables, source, path, args.workers, progress)
        print(f"{path}: {samples} samples of {number} scenes")
    if not args.sources:
        _write_splits(args, tables, out_dir)
    if tables.cameras != CAMERAS:
        print(f"cameras differ from nuScenes': set cameras = {[*tables.cameras]} in the config")


def _write_splits(args: argparse.Namespace, tables: Tables, out_dir: Path) -> None:
    names = [str(scene["name"]) for scene in tables.scenes]
    splits = choose_splits(names, tables.data_root / tables.version, args.split, args.splits)
    for split, scenes in splits.scenes.items():
        path = out_dir / info_file_name(args.version, split)
        metadata = {"split": splits.labels[split]}
        progress = not args.no_progress
        samples = write_scenes(tables, scenes, path, metadata, args.workers, progress)
        print(f"{path}: {samples} samples of {len(scenes)} scenes")
    for note in splits.notes:
        print(f"note: {note}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(command_parser(), write_info_files, arguments)
