"""Time PNG sheets on one thread: six cameras, prediction, ground truth, difference, legend.

    python benchmarks/bench_sheet.py [--samples 16] [--widths 1600 4800] [--out FILE.md]

Ground truth and images are from the toy data set (scripts/make_toy_nuscenes.py, then
scripts/gen_sweep_info.py), with the images enlarged to nuScenes' 1600 x 900. Predictions are the
ground truth with missing, moved, mislabelled and invented voxels, as in bench_scoring; their many
loose voxels are harder to draw than clean surfaces. Times include writing the PNG file, but not
loading, prediction and scoring.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

from benchmarks.bench_scoring import FREE, plausible
from loaders.info_io import CAMERAS, load_infos
from scripts.runtime.environment import git_commit, package_versions
from scripts.runtime.host_allocator import keep_freed_memory
from scripts.visualization.gallery import save_png
from scripts.visualization.palette import OCC3D_CLASSES
from scripts.visualization.sample_view import CameraImage, SampleView, dense_grid
from scripts.visualization.sheet import SheetOptions, compose_sheet

ROOT = Path(__file__).resolve().parents[1]
FULL_HW = (900, 1600)


def make_view(root: Path, info: dict, index: int, total: int) -> SampleView:
    path = root / "gts" / info["scene_name"] / info["token"] / "labels.npz"
    with np.load(path) as file:
        truth, scored = file["semantics"], file["mask_camera"].astype(bool)
    coords, classes = plausible(truth, np.random.default_rng(index))
    images = []
    for camera in CAMERAS:
        with Image.open(root / info["cams"][camera]["data_path"]) as file:
            image = file.convert("RGB").resize(FULL_HW[::-1], Image.Resampling.BICUBIC)
        images.append(CameraImage(camera, image))
    return SampleView(
        index=index,
        total=total,
        scene_name=info["scene_name"],
        sample_token=info["token"],
        class_names=OCC3D_CLASSES,
        empty_label=FREE,
        grid_min=(-40.0, -40.0, -1.0),
        voxel_size=(0.4, 0.4, 0.4),
        prediction=dense_grid(coords, classes.astype(np.int64), truth.shape, FREE),
        truth=truth,
        scored=scored,
        images=tuple(images),
        scores=(("mIoU", 23.41), ("IoU", 44.0), ("RayIoU", 34.22)),
        time_us=int(info["timestamp"]),
    )


def options_for(width: int, view: SampleView) -> SheetOptions:
    """Return the options for sheets of this width."""
    plain = compose_sheet(view, SheetOptions(scale=0.2)).image.width / 0.2
    options = SheetOptions(scale=width / plain)
    found = compose_sheet(view, options).image.width
    assert abs(found - width) <= 3, f"{found} instead of {width} columns"
    return options


def measure(views: list[SampleView], options: SheetOptions, folder: Path) -> tuple[float, float]:
    """Return CPU seconds per sheet and megabytes per file; the first sheet is a warm-up."""
    save_png(compose_sheet(views[0], options).image, folder / "warm.png")
    start = time.process_time()
    sizes = []
    for number, view in enumerate(views):
        path = save_png(compose_sheet(view, options).image, folder / f"{number}.png")
        sizes.append(path.stat().st_size)
    return (time.process_time() - start) / len(views), sum(sizes) / len(sizes) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--widths", type=int, nargs="+", default=[1600, 4800])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "toy_nuscenes")
    parser.add_argument("--note", default="", help="a sentence to go into the file")
    parser.add_argument("--out", type=Path, help="Markdown file for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as visualize.py does
    infos = load_infos(args.data / "nuscenes_infos_val_mini_sweep.pkl").infos
    infos = [infos[i % len(infos)] for i in range(args.samples)]
    views = [make_view(args.data, info, i, len(infos)) for i, info in enumerate(infos)]
    lines = [heading(args)]
    with tempfile.TemporaryDirectory() as name:
        for width in args.widths:
            seconds, megabytes = measure(views, options_for(width, views[0]), Path(name))
            lines.append(
                f"| {width} | {seconds * 1e3:.0f} ms | {1 / seconds:.2f} | {megabytes:.1f} MB |"
            )
            print(lines[-1], flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n")


def heading(args: argparse.Namespace) -> str:
    found = package_versions()
    versions = ", ".join(f"{key} {found[key]}" for key in ("python", "torch", "numpy", "pillow"))
    widths = " ".join(map(str, args.widths))
    note = f"{args.note}\n\n" if args.note else ""
    return (
        "# Drawing sheets\n\n"
        f"`python benchmarks/bench_sheet.py --samples {args.samples} --widths {widths}`, "
        f"{time.strftime('%Y-%m-%d')}, {processor()} ({os.cpu_count()} cores, "
        f"{platform.machine()}), one thread, no GPU, {versions}, commit {git_commit()}.\n\n{note}"
        "| width in pixels | CPU time per sheet | sheets per core-second | PNG file |\n"
        "|---|---|---|---|"
    )


def processor() -> str:
    """Return the name of the processor from /proc/cpuinfo."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


if __name__ == "__main__":
    main()
