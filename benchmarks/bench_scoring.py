"""Time the scoring of random predictions, as many as nuScenes' validation split has samples.

    python benchmarks/bench_scoring.py [--samples 6019] [--workers 2] [--out FILE.md]

The ground truth of the toy data set (scripts/make_toy_nuscenes.py) is repeated under new sample
tokens. Every sample has a prediction file: its labels with missing, moved, mislabelled and
invented voxels. `scripts/score_predictions.py` then scores the files in a separate process, without
and with the cache of ground-truth rays, which the first samples of the run fill.

Memory is the sum over all processes of the scorer; shared pages are counted once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.info_io import load_infos, save_infos
from loaders.predictions import save_prediction
from scripts.runtime.environment import git_commit, package_versions

ROOT = Path(__file__).resolve().parents[1]
FREE, NUM_CLASSES = 17, 17
VALIDATION_SAMPLES = 6019

CONFIG = """
custom_imports = dict(imports=['loaders.register'], allow_failed_imports=False)
test_dataloader = dict(dataset=dict(
    type='NuScenesOcc3DDataset', data_root={root!r}, ann_file='infos.pkl', num_frames=1,
    with_ray_origins=True, pipeline=[dict(type='LoadOcc3DLabels')]))
test_evaluator = [
    dict(type='OccupancyMetric', mask='camera'), dict(type='RayIoUMetric', cache_dir={cache!r})]
"""


def plausible(labels: npt.NDArray[np.uint8], rng: np.random.Generator) -> tuple[Any, Any]:
    """Return the voxels [n, 3] and classes: 15 % lost, 20 % a voxel off, 10 % mislabelled, 10 %
    invented."""
    coords = np.argwhere(labels != FREE)
    coords = coords[rng.random(len(coords)) > 0.15]
    classes = labels[tuple(coords.T)]
    moved = rng.random(len(coords)) < 0.2
    coords[moved] += rng.integers(-1, 2, (moved.sum(), 3))
    wrong = rng.random(len(coords)) < 0.1
    classes[wrong] = rng.integers(0, NUM_CLASSES, wrong.sum())
    invented = rng.integers(0, labels.shape, (len(coords) // 10, 3))
    coords = np.concatenate([coords, invented])
    classes = np.concatenate([classes, rng.integers(0, NUM_CLASSES, len(invented))])
    coords = np.clip(coords, 0, np.array(labels.shape) - 1)
    coords, first = np.unique(coords, axis=0, return_index=True)
    return coords, classes[first]


def write_ground_truth(source: Path, root: Path, number: int) -> list[tuple[str, Path]]:
    """Write info file and labels of `number` samples; return their tokens and label files."""
    for name in ("samples", "sweeps"):
        (root / name).symlink_to((source / name).resolve())
    infos = []
    for split in ("train", "val"):
        infos += load_infos(source / f"nuscenes_infos_{split}_mini_sweep.pkl").infos
    samples, renamed = [], []
    for i in range(number):
        info, turn = infos[i % len(infos)], i // len(infos)
        own = {name: f"{info[name]}-{turn}" for name in ("token", "scene_name", "scene_token")}
        folder = root / "gts" / own["scene_name"]
        folder.mkdir(parents=True, exist_ok=True)
        labels = (source / "gts" / info["scene_name"] / info["token"]).resolve()
        (folder / own["token"]).symlink_to(labels)
        renamed.append({**info, **own})
        samples.append((own["token"], labels / "labels.npz"))
    save_infos(root / "infos.pkl", renamed, {"version": "v1.0-trainval"})
    return samples


def write_predictions(folder: Path, samples: list[tuple[str, Path]], rank: int) -> int:
    for i, (token, path) in enumerate(samples):
        with np.load(path) as file:
            coords, classes = plausible(file["semantics"], np.random.default_rng([rank, i]))
        save_prediction(folder, token, coords, classes)
    return len(samples)


def memory_mb(pid: int) -> float:
    """Return the proportional memory of a process and its children, MB."""
    pids, total = [pid], 0.0
    try:
        pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        for each in pids:
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024 / 1e6
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0.0  # it has just ended
    return total


def score(config: Path, predictions: Path, workers: int) -> dict[str, Any]:
    """Return wall and CPU time in s, memory in MB over the run, and the scorer's report."""
    out = config.with_suffix(".json")
    command = [sys.executable, "-m", "scripts.score_predictions", "--config", str(config)]
    command += ["--predictions", str(predictions), "--workers", str(workers), "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    memory = []
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        memory.append(memory_mb(process.pid))
        time.sleep(0.5)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"scoring failed with exit code {process.returncode}")
    return dict(
        wall_s=time.monotonic() - start,
        cpu_s=usage.ru_utime + usage.ru_stime,
        quarter_mb=max(memory[: max(1, len(memory) // 4)]),
        peak_mb=max(memory),
        metrics=json.loads(out.read_text())["metrics"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=VALIDATION_SAMPLES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "toy_nuscenes")
    parser.add_argument("--rays", nargs="+", choices=("cast", "kept"), default=["cast", "kept"])
    parser.add_argument("--note", default="", help="a sentence to go into the file")
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        samples = write_ground_truth(args.data, root, args.samples)
        (root / "predictions").mkdir()
        fork = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(args.workers, mp_context=fork) as pool:
            shares = [samples[rank :: args.workers] for rank in range(args.workers)]
            folders = [root / "predictions"] * args.workers
            list(pool.map(write_predictions, folders, shares, range(args.workers)))
        size = sum(path.stat().st_size for path in (root / "predictions").iterdir())
        runs = {}
        for rays in args.rays:
            config = root / f"{rays}.py"
            cache = str(root / "rays") if rays == "kept" else None
            config.write_text(CONFIG.format(root=str(root), cache=cache))
            runs[rays] = score(config, root / "predictions", args.workers)
            print(table(args, {rays: runs[rays]}, size), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(table(args, runs, size) + "\n")


def table(args: argparse.Namespace, runs: dict[str, dict[str, Any]], size: int) -> str:
    """Return the result as Markdown."""
    found = package_versions()
    versions = ", ".join(f"{key} {found[key]}" for key in ("python", "torch", "numpy", "mmengine"))
    lines = [
        f"# Scoring {args.samples} predictions on disk with {args.workers} processes\n",
        f"`python benchmarks/bench_scoring.py --samples {args.samples} --workers {args.workers}`, "
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()}-core {platform.machine()} CPU, no GPU, "
        f"{versions}, commit {git_commit()}. Occ3D mIoU and RayIoU; prediction files of "
        f"{size / args.samples / 1e3:.0f} kB on average.\n",
        *([args.note + "\n"] if args.note else []),
        "| rays of the ground truth | wall time | samples/s | CPU time per sample | memory in the "
        "first quarter | peak memory | mIoU | RayIoU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rays, run in runs.items():
        metrics = run["metrics"]
        lines.append(
            f"| {rays} | {run['wall_s']:.0f} s | {args.samples / run['wall_s']:.1f} | "
            f"{1e3 * run['cpu_s'] / args.samples:.0f} ms | {run['quarter_mb']:.0f} MB | "
            f"{run['peak_mb']:.0f} MB | {metrics['occ3d/mIoU']:.2f} | "
            f"{metrics['ray/RayIoU']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
