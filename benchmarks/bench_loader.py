"""Time the loading of samples: plain per-image pipeline, exact, fast and packed images.

    python benchmarks/bench_loader.py [--real NUSCENES] [--rounds N] [--workers 0 2 4 8] [--save]

Make a data set of nuScenes' sizes in a temporary folder (1600 x 900 JPEGs, Occ3D labels, LiDAR, 8
frames of 6 cameras a sample) and use the published training and test pipelines. --real names a
nuScenes folder whose key frames are used in a second run. `plain` decodes and resizes with Pillow,
image by image. The cost is measured as CPU time in one process. The pipelines take turns, with five
samples each, of which the first is not counted: a worker also runs one pipeline.
Samples per second with workers are measured in wall time.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import PIL.Image
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, TRANSFORMS
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, not as a module

import loaders.register  # noqa: F401 - enters the parts into the registries
from benchmarks import common
from benchmarks.loader_data import write_data_set
from loaders.errors import ImageBackendError
from loaders.sample import OccSample
from loaders.transforms import decode
from loaders.transforms.decode import Backend, fastest_backend
from loaders.transforms.geometry import apply_image_aug
from models.ops.jpeg_crop import jpeg_crop
from models.ops.jpeg_window import has_jpeg_window, jpeg_window
from scripts.packing.plan import PackingPlan, plan_packing
from scripts.packing.writer import DEFAULT_QUALITY, pack, pack_image
from scripts.runtime.atomic_write import write_atomically
from scripts.runtime.config import load_config

CONFIG = "configs/opusv2_nusc-occ3d/opusv2-t_r50_704x256_8f_nusc-occ3d_100e.py"
# Of nuScenes trainval: key frames, scenes, and camera frames of each key frame (5 sweeps and
# itself, except for the first of a scene).
NUSC_KEY_FRAMES, NUSC_SCENES, NUSC_FRAMES = 34_149, 850, 6
AIMS = {"exact": 2.5, "fast": 8.0, "packed": 10.0}
BATCH = 8
BLOCK = 4  # samples of a pipeline that are measured in a row
IMAGES = 48  # of a sample
Step = dict[str, Any]


@TRANSFORMS.register_module()
class PlainImages:
    """Load images in a loop, only with Pillow."""

    def __call__(self, sample: OccSample) -> OccSample:
        assert sample.image_aug is not None
        images = []
        for path in sample.img_paths:
            with PIL.Image.open(path) as file:
                rgb = np.asarray(file.convert("RGB"))
            images.append(apply_image_aug(rgb, sample.image_aug)[:, :, ::-1])
        sample.images = np.ascontiguousarray(np.stack(images))
        return sample


class Lines:
    """Print lines and keep them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, text: str = "") -> None:
        print(text, flush=True)
        self.lines.append(text)

    def table(self, *header: str) -> None:
        self("| " + " | ".join(header) + " |")
        self("|---" * len(header) + "|")

    def row(self, *cells: object) -> None:
        self("| " + " | ".join(str(cell) for cell in cells) + " |")


def load_published(root: Path, **options: Any) -> Config:
    """Return the published config with the data set of the benchmark."""
    files = {
        f"{part}_dataloader.dataset.{key}": value
        for part in ("train", "val")
        for key, value in (("ann_file", "infos.pkl"), ("with_ray_origins", False))
    }
    return load_config(str(common.ROOT / CONFIG), dict(data_root=str(root), **files, **options))


def variants(base: Step, packed_root: str, backends: Sequence[Backend]) -> Iterator[tuple]:
    """Yield the names, decoders and data set configs to compare."""
    for mode in ("plain", "exact", "fast", "packed"):
        # Exact images are not decoded and resized in one pass.
        first: Backend = fastest_backend() if mode == "exact" else "auto"  # type: ignore[assignment]
        decoders: list[Backend] = [*dict.fromkeys([first, *backends])]
        for backend in decoders[:1] if mode == "plain" else decoders:
            cfg = copy.deepcopy(base)
            if mode == "plain":
                cfg["pipeline"][1] = dict(type="PlainImages")
            else:
                image_mode = "fast" if mode == "fast" else "exact"
                cfg["pipeline"][1].update(image_mode=image_mode, backend=backend)
            if mode == "packed":
                cfg["data_root"] = packed_root
            yield mode, _decoder_name(mode, backend), cfg


def _decoder_name(mode: str, backend: Backend) -> str:
    if mode == "plain":
        return "pillow"
    return "native (auto)" if backend == "auto" else backend


def working(backends: Sequence[Backend]) -> list[Backend]:
    """Return the decoders that work on this machine."""
    found = []
    for backend in backends:
        try:
            decode._decoder(backend)
        except ImageBackendError:
            continue
        found.append(backend)
    return found


def stage_times_ms(dataset: Any, index: int) -> tuple[dict[str, float], Any]:
    """Return CPU milliseconds of every step of a sample in this process, and the sample."""
    start = time.process_time()
    item = dataset.get_sample(index % len(dataset))
    spent = {"poses": time.process_time() - start}
    for step in dataset.pipeline.transforms:
        start = time.process_time()
        item = step(item)
        spent[type(step).__name__] = time.process_time() - start
    return {name: 1e3 * value for name, value in spent.items()}, item


def errors_of(built: list[tuple], samples: int) -> list[tuple[float, float]]:
    """Return the largest difference from the first pipeline's images and the mean of its square."""
    errors: list[list[tuple[float, float]]] = [[] for _ in built]
    for turn in range(samples):
        truth = None
        for wrong, (*_, dataset) in zip(errors, built, strict=True):
            dataset.set_epoch(turn)
            images = stage_times_ms(dataset, turn + 8)[1]["inputs"]["img"].numpy().astype(np.int16)
            truth = images if truth is None else truth
            apart = np.abs(images - truth)
            wrong.append((float(apart.max()), float((apart.astype(np.float32) ** 2).mean())))
    return [(max(m for m, _ in own), statistics.mean(e for _, e in own)) for own in errors]


def per_core(say: Lines, kind: str, built: list[tuple], rounds: int) -> dict[str, float]:
    """Print CPU times by pipeline; return milliseconds a sample by mode, fastest decoder."""
    errors = errors_of(built, 3)
    times: list[list[dict[str, float]]] = [[] for _ in built]
    for turn in range(rounds):
        for own, (*_, dataset) in zip(times, built, strict=True):
            dataset.set_epoch(turn)
            # Like a worker, which runs one pipeline: a sample after one of the same pipeline.
            for number in range(1 + BLOCK):
                stages = stage_times_ms(dataset, turn * BLOCK + number + 7)[0]
                if number:
                    own.append(stages)
    say.table(
        kind, "decoder", "CPU ms a sample", "of that, images", "labels", "against plain",
        "largest difference", "PSNR",
    )  # fmt: skip
    totals: dict[str, float] = {}
    plain = 0.0
    for own, (most, error), (mode, backend, _) in zip(times, errors, built, strict=True):
        total = statistics.median(sum(stages.values()) for stages in own)
        plain = plain or total
        totals.setdefault(mode, total)
        stage = {name: statistics.median(s[name] for s in own) for name in own[0]}
        images = stage.get("LoadMultiViewImages") or stage["PlainImages"]
        psnr = f"{10 * np.log10(255**2 / error):.1f} dB" if error else ""
        say.row(
            mode, backend, f"{total:.0f}", f"{images:.0f}", f"{stage['LoadOcc3DLabels']:.1f}",
            f"{plain / total:.1f} x", f"{most:.0f}", psnr,
        )  # fmt: skip
    say()
    return totals


def tell_floor(say: Lines, plan: PackingPlan, rounds: int) -> None:
    """Print the time of entropy decoding, which every image needs."""
    out = torch.empty(1, 64, 3, dtype=torch.uint8)
    (raw_h, raw_w), *_ = (size.raw_hw for size in plan.images.values())
    half = (raw_h // 2, raw_w // 2)
    corner = (half[0] - 1, half[1] - 64)

    def native(data: torch.Tensor) -> None:
        # The last row of the image: every block is parsed, few are transformed.
        assert jpeg_crop(out, data, 2, (raw_h, raw_w), 0, half, corner)

    def libjpeg(data: torch.Tensor) -> None:
        assert jpeg_window(data, 2, (corner[0], half[0]), (corner[1], half[1]))

    names = [*plan.images][:: max(1, len(plan.images) // IMAGES)][:IMAGES]
    files = [
        torch.frombuffer(bytearray((plan.source / name).read_bytes()), dtype=torch.uint8)
        for name in names
    ]
    parsers = {"native": native, **({"libjpeg": libjpeg} if has_jpeg_window() else {})}
    taken: dict[str, list[float]] = {name: [] for name in parsers}
    for _ in range(rounds + 1):
        for name, parse in parsers.items():
            start = time.process_time()
            for data in files:
                parse(data)
            taken[name].append(1e3 * (time.process_time() - start) * IMAGES / len(files))
    told = ", ".join(f"{name} {statistics.median(t[1:]):.0f} ms" for name, t in taken.items())
    say(f"Entropy decoding of the {IMAGES} images of a sample alone: {told}.\n")


def tell_machines(say: Lines, totals: dict[str, float]) -> None:
    """Print the step times that machines can sustain, from the CPU times of a core."""
    say.table(
        "training", "samples/s of 4 workers", f"feed batches of {BATCH} every", "of 16 workers",
        "feed every",
    )  # fmt: skip
    for mode, total in totals.items():
        cells = []
        for cores in (4, 16):
            rate = 1e3 * cores / total
            cells += [f"{rate:.1f}", f"{BATCH / rate:.2f} s"]
        say.row(mode, *cells)
    say("\nOne core for each worker.\n")


def shared_memory_mib(pids: Sequence[int]) -> float:
    """Return the mean proportional memory of processes, MiB: shared pages are split among them."""
    sizes = []
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        (line,) = (row for row in text.splitlines() if row.startswith("Pss:"))
        sizes.append(int(line.split()[1]) / 1024)
    return statistics.mean(sizes)


def tell_workers(say: Lines, built: list[tuple], workers: Sequence[int], seconds: float) -> None:
    """Print start, rate and memory of data loaders."""
    say.table("training", "workers", "first sample after", "samples/s", "memory of a worker")
    for mode, _, dataset in built:
        for number in workers:
            options = dict(prefetch_factor=1, persistent_workers=True) if number else {}
            loader = DataLoader(
                dataset, batch_size=1, num_workers=number, collate_fn=pseudo_collate, **options
            )
            start = time.perf_counter()
            batches = iter(loader)
            next(batches)
            first = time.perf_counter() - start
            stream = (batch for _ in iter(int, 1) for batch in loader)
            for _ in range(1 + 2 * number):
                next(stream)
            start, count = time.perf_counter(), 0
            while (spent := time.perf_counter() - start) < seconds or count < 2:
                next(stream)
                count += 1
            pids = [worker.pid for worker in getattr(loader._iterator, "_workers", [])]
            memory = f"{shared_memory_mib(pids):.0f} MiB" if pids else ""
            say.row(mode, number, f"{first:.2f} s", f"{count / spent:.2f}", memory)
            del stream, batches, loader
    say()


def tell_packing(say: Lines, plan: PackingPlan, out: Path) -> None:
    """Print size and time of packing nuScenes, estimated from the images of the data set."""
    names = [*plan.images][:: max(1, len(plan.images) // 24)]
    raw = packed = seconds = 0.0
    for name in names:
        path = plan.source / name
        start = time.process_time()
        packed += len(pack_image(path, plan.images[name], plan.quality))
        seconds += time.process_time() - start
        raw += path.stat().st_size
    size = next(iter(plan.images.values()))
    labels = statistics.mean((out / name).stat().st_size for name in plan.labels)
    number = (NUSC_KEY_FRAMES * NUSC_FRAMES - NUSC_SCENES * (NUSC_FRAMES - 1)) * 6
    n = len(names)
    say(
        f"Packed images have {size.stored_hw[1]} x {size.stored_hw[0]} pixels (JPEG quality"
        f" {plan.quality}) and {packed / n / 1e3:.0f} kB instead of {raw / n / 1e3:.0f}; one takes"
        f" {1e3 * seconds / n:.1f} ms of CPU. For the {number / 1e6:.2f} million images of nuScenes"
        f" trainval: {packed / n * number / 1e9:.0f} GB (raw"
        f" {raw / n * number / 1e9:.0f}), {seconds / n * number / 3600:.1f} hours of one core."
        f" Labels: {labels * NUSC_KEY_FRAMES / 1e9:.1f} GB.\n"
    )


def tell_lidar(say: Lines, root: Path, rounds: int) -> None:
    """Print CPU times of loading the LiDAR of a sample: ten files."""
    base = load_published(root)["train_dataloader"]["dataset"].to_dict()
    pipeline = [dict(type="LoadLidarSweeps"), dict(type="FilterPoints")]
    dataset = DATASETS.build({**base, "use_lidar": True, "pipeline": pipeline})
    taken = [stage_times_ms(dataset, turn)[0] for turn in range(rounds + 1)][1:]
    names = ("LoadLidarSweeps", "FilterPoints")
    parts = {name: statistics.median(stages[name] for stages in taken) for name in names}
    told = ", ".join(f"{name} {ms:.1f} ms" for name, ms in parts.items())
    say(f"LiDAR, ten files a sample, CPU time: {told}.\n")


def bench(say: Lines, title: str, root: Path, args: argparse.Namespace) -> dict[str, float]:
    """Measure a data set of one kind of frames; return ratios to plain by mode."""
    cfg = load_published(root)
    train, test = (cfg[f"{part}_dataloader"]["dataset"].to_dict() for part in ("train", "val"))
    packed = root.parent / f"{root.name}_packed"
    plan = plan_packing(cfg, CONFIG, DEFAULT_QUALITY)
    pack(plan, packed, 0)
    backends = working(args.backends)
    say(f"## {title}\n")
    totals: dict[str, dict[str, float]] = {}
    for kind, base in (("training", train), ("evaluation", test)):
        built = [
            (mode, decoder, DATASETS.build(part))
            for mode, decoder, part in variants(base, str(packed), backends)
        ]
        totals[kind] = per_core(say, kind, built, args.rounds)
        if kind == "training":
            fastest = {entry[0]: entry for entry in reversed(built)}
    tell_floor(say, plan, args.rounds)
    tell_machines(say, totals["training"])
    in_workers = [fastest[mode] for mode in AIMS]
    tell_workers(say, in_workers, args.workers, args.seconds)
    tell_packing(say, plan, packed)
    tell_lidar(say, root, args.rounds)
    ours = totals["training"]
    return {mode: ours["plain"] / ours[mode] for mode in AIMS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each pipeline")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each number of workers")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4, 8])
    decoders = ["libjpeg", "turbojpeg", "cv2"]
    parser.add_argument(
        "--backends", nargs="+", default=decoders, help="decoders in addition to the fastest"
    )
    parser.add_argument("--real", type=Path, help="nuScenes folder with real key frames")
    parser.add_argument("--note", default="", help="a remark, such as other load")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/loader.md")
    args = parser.parse_args()
    cv2.setNumThreads(0)  # as the runner sets it
    torch.set_num_threads(1)
    say = Lines()
    say("# Loading samples\n")
    real = " --real NUSCENES" if args.real else ""
    say(
        f"`python benchmarks/bench_loader.py{real} --rounds {args.rounds} --seconds"
        f" {args.seconds:g} --save`, {time.strftime('%Y-%m-%d')}, {common.hardware('cpu')}, python"
        f" {platform.python_version()}, numpy {np.__version__}, opencv {cv2.__version__}, pillow"
        f" {PIL.__version__}, torch {torch.__version__}. A sample is 8 frames of 6 cameras, 1600 x"
        f" 900 JPEGs, with Occ3D labels. CPU times are medians of samples. {args.note}\n"
    )
    missing = [name for name in args.backends if name not in working(args.backends)]
    if missing:
        say(f"Not available on this machine, so not measured: {', '.join(missing)}.\n")
    aims = []
    for title, source in (("Drawn frames", None), ("Real frames", args.real)):
        if title == "Real frames" and source is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "frames"
            root.mkdir()
            write_data_set(root, source)
            for mode, ratio in bench(say, title, root, args).items():
                verdict = "ok" if ratio >= AIMS[mode] else "short"
                aims.append(f"AIM {title.lower()}, {mode} {ratio:.3g} >= {AIMS[mode]:g} {verdict}")
    for aim in aims:
        say(aim)
    if args.save:
        text = "\n".join(say.lines) + "\n"
        write_atomically(common.RESULTS / "loader.md", lambda path: path.write_text(text))


if __name__ == "__main__":
    main()
