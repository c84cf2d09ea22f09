"""Times the loading of samples: plain per-image pipeline, exact mode, fast mode.

    python -m benchmarks.bench_loader [--seconds N] [--workers 0 1 2] [--config CONFIG]

Without --config it makes a data set of nuScenes' sizes in a temporary folder (1600 x 900 JPEGs,
Occ3D labels, 8 frames of 6 cameras per sample) and uses the published training and test pipelines.
With it, the first two steps of the config's training pipeline must be DrawImageAug and
LoadMultiViewImages. `plain` decodes with Pillow and resizes with Pillow, image by image.

Samples/s are wall time; what a core does is told by the CPU times of the stages in one process.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.info_io import CAMERAS, save_infos
from loaders.sample import OccSample
from loaders.transforms.decode import fastest_backend
from loaders.transforms.geometry import apply_image_aug

BASE = Path(__file__).resolve().parents[1] / "configs/_base_/datasets/nuscenes_occ3d.py"
RAW_HW = (900, 1600)
KEY_FRAMES, SWEEPS = 24, 5
Step = dict[str, Any]


@TRANSFORMS.register_module()
class PlainImages:
    """The plain pipeline: a loop over images with Pillow alone."""

    def __call__(self, sample: OccSample) -> OccSample:
        assert sample.image_aug is not None
        images = []
        for path in sample.img_paths:
            with Image.open(path) as file:
                rgb = np.asarray(file.convert("RGB"))
            images.append(apply_image_aug(rgb, sample.image_aug)[:, :, ::-1])
        sample.images = np.ascontiguousarray(np.stack(images))
        return sample


def write_image(path: Path, seed: int) -> None:
    """A JPEG of a street's size in bytes: large shapes, edges, a little noise."""
    rng = np.random.default_rng(seed)
    h, w = RAW_HW
    image = Image.fromarray(rng.integers(0, 255, (h // 60, w // 60, 3), np.uint8))
    image = image.resize((w, h), Image.Resampling.BICUBIC)
    boxes = np.asarray(image).astype(np.int16)
    for _ in range(120):
        y, x = rng.integers(0, h), rng.integers(0, w)
        size = rng.integers(5, 90, 2)
        boxes[y : y + size[0], x : x + size[1]] = rng.integers(0, 255, 3)
    boxes += rng.integers(-4, 5, boxes.shape, np.int16)
    image = Image.fromarray(np.clip(boxes, 0, 255).astype(np.uint8))
    image.filter(ImageFilter.GaussianBlur(0.6)).save(path, quality=92)


def write_data_set(root: Path) -> None:
    """One scene of key frames and sweeps; all images are links to a dozen."""
    stock = []
    for i in range(12):
        stock.append(root / f"stock{i}.jpg")
        write_image(stock[-1], i)
    rng = np.random.default_rng(0)
    semantics = np.where(rng.random((200, 200, 16)) < 0.05, 11, 17).astype(np.uint8)
    masks = rng.random((2, 200, 200, 16)) < 0.3
    names = iter(range(10**6))

    def camera(name: str, time_us: int) -> Step:
        path = f"samples/{name}/{next(names)}.jpg"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(stock[rng.integers(len(stock))], root / path)
        return {
            "data_path": path,
            "timestamp": time_us,
            "cam_intrinsic": np.array([[1266.0, 0, 810], [0, 1266, 490], [0, 0, 1]]),
            "sensor2global_rotation": np.eye(3),
            "sensor2global_translation": np.zeros(3),
        }

    def frame(time_us: int) -> Step:
        return {name: camera(name, time_us) for name in CAMERAS}

    infos = []
    for k in range(KEY_FRAMES):
        now, token = 500_000 * k, f"sample{k}"
        sweeps = [frame(now - 83_333 * (i + 1)) for i in range(SWEEPS if k else 0)]
        still = {"translation": [0.0] * 3, "rotation": [1.0, 0, 0, 0]}
        poses = {f"{a}_{b}": still[b] for a in ("lidar2ego", "ego2global") for b in still}
        scene = {"scene_name": "scene", "scene_token": "scene", "lidar_token": f"lidar{k}"}
        files = {"lidar_path": "none", "lidar_sweeps": [], "cams": frame(now), "cam_sweeps": sweeps}
        infos.append({"token": token, "timestamp": now, **scene, **files, **poses})
        folder = root / "gts" / "scene" / token
        folder.mkdir(parents=True)
        np.savez_compressed(
            folder / "labels.npz", semantics=semantics, mask_camera=masks[0], mask_lidar=masks[1]
        )
    save_infos(root / "infos.pkl", infos, {"version": "v1.0-trainval"})


def variants(train: Step, test: Step) -> Iterator[tuple[str, Step]]:
    """Names and data set configs to compare."""
    for name, base in (("training", train), ("evaluation", test)):
        for mode in ("plain", "exact", "fast"):
            cfg = copy.deepcopy(base)
            step = cfg["pipeline"][1]
            if mode == "plain":
                cfg["pipeline"][1] = dict(type="PlainImages")
            else:
                step.update(image_mode=mode)
                if name == "training":
                    step.pop("image_cache_mb", None)
            yield f"{name}, {mode}", cfg


def samples_per_second(dataset: Any, workers: int, seconds: float) -> float:
    """Through a data loader, in the order of evaluation, without its start."""
    options = dict(prefetch_factor=1) if workers else {}
    loader = DataLoader(dataset, num_workers=workers, collate_fn=pseudo_collate, **options)
    stream = (batch for _ in iter(int, 1) for batch in loader)
    for _ in range(1 + 2 * workers):
        next(stream)
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds or count < 2:
        next(stream)
        count += 1
    return count / spent


def stage_times_ms(dataset: Any, seconds: float) -> dict[str, float]:
    """Mean CPU milliseconds of every step of a sample, in this process."""
    spent: dict[str, float] = defaultdict(float)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds or count < 2:
        start = time.process_time()
        sample = dataset.get_sample(count % len(dataset))
        spent["poses"] += time.process_time() - start
        for step in dataset.pipeline.transforms:
            start = time.process_time()
            sample = step(sample)
            spent[type(step).__name__] += time.process_time() - start
        count += 1
    return {name: 1e3 * value / count for name, value in spent.items()}


def run(train: Step, test: Step, workers: Sequence[int], seconds: float) -> None:
    cv2.setNumThreads(0)  # as the runner sets it
    print(f"decoder: {fastest_backend()}; samples/s by number of workers, CPU ms per stage")
    plain: dict[str, float] = {}
    for name, cfg in variants(train, test):
        dataset = DATASETS.build(cfg)
        rates = {n: samples_per_second(dataset, n, seconds) for n in workers}
        stages = stage_times_ms(dataset, seconds)
        total, kind = sum(stages.values()), name.split(",")[0]
        plain.setdefault(kind, total)
        listed = "  ".join(f"{n}: {rate:6.2f}" for n, rate in rates.items())
        print(f"{name:18} {listed}   {total:7.1f} ms, {plain[kind] / total:.1f} x plain")
        print("    " + ", ".join(f"{key} {value:.1f}" for key, value in stages.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="per measurement")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", help="config with a data set of its own")
    args = parser.parse_args()
    cfg = Config.fromfile(args.config or str(BASE))
    train, test = (cfg[f"{part}_dataloader"]["dataset"].to_dict() for part in ("train", "val"))
    if args.config:
        run(train, test, args.workers, args.seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_data_set(Path(folder))
        for dataset in (train, test):
            dataset.update(data_root=folder, ann_file="infos.pkl", with_ray_origins=False)
        run(train, test, args.workers, args.seconds)


if __name__ == "__main__":
    main()
