"""Plan of a packed data root: the files that the data sets of a config read, and their sizes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.datasets.wrappers import leaf_configs
from loaders.packed import FORMAT, StoredSize, smallest_stored_size
from loaders.transforms.geometry import ImageAugParams
from loaders.transforms.images import DrawImageAug, LoadMultiViewImages
from loaders.transforms.labels import LoadOcc3DLabels, pack_occ3d_labels
from loaders.transforms.occupancy_labels import LoadOccupancyLabels, pack_occupancy_rows
from scripts.runtime.building import named_config_keys
from scripts.runtime.errors import ConfigError

Size = tuple[int, int]
# Reads a label file as the arrays of a packed one; None if it cannot be packed.
LabelPacker = Callable[[str], "dict[str, npt.NDArray[Any]] | None"]
_LABEL_PACKERS: Mapping[type, LabelPacker] = {
    LoadOcc3DLabels: pack_occ3d_labels,
    LoadOccupancyLabels: pack_occupancy_rows,
}


@dataclass(frozen=True)
class PackingPlan:
    """Contents of a packed data root.

    Attributes:
        source: Absolute path of the data root to read.
        images: Maps image files, relative to it, to their stored sizes.
        labels: Maps label files, relative to it, to their packing functions.
        quality: Quality of the JPEG files.
        index: The index, without the flag that the packing is complete.
    """

    source: Path
    images: dict[str, StoredSize]
    labels: dict[str, LabelPacker]
    quality: int
    index: dict[str, Any]

    @property
    def recipe(self) -> dict[str, Any]:
        """Settings that must be equal for a run to continue with the files of another."""
        free = ("config", "versions")
        return {key: value for key, value in self.index.items() if key not in free}


def plan_packing(cfg: Config, config_name: str, quality: int) -> PackingPlan:
    """Find the files that the data sets of a config read.

    Args:
        cfg: A config with data loaders.
        config_name: Name of the config, for the index.
        quality: Quality of the JPEG files.

    Raises:
        ConfigError: If the config loads no images, reads several data roots or packed ones, or
            files elsewhere.
    """
    init_default_scope(cfg.get("default_scope", "mmengine"))
    datasets = _data_sets(cfg)
    source = _common_root(datasets)
    augs: dict[Size, list[ImageAugParams]] = {}
    cameras: dict[str, Size] = {}
    for dataset in datasets:
        draw, load = (_step(dataset, kind) for kind in (DrawImageAug, LoadMultiViewImages))
        for size in draw.image_sizes():
            augs.setdefault(size, []).extend(draw.extreme_augs(size, not dataset.test_mode))
        cameras |= {name: load.camera_hw.get(name, load.raw_hw) for name in dataset.cameras}
    sizes = {size: smallest_stored_size(needed, size) for size, needed in augs.items()}
    images = {
        path: sizes[cameras[camera]]
        for dataset in datasets
        for column, camera in enumerate(dataset.cameras)
        for path in _relative(np.unique(dataset.frames.paths[:, column]).tolist())
    }
    found = {path: pack for dataset in datasets for path, pack in _labels(dataset, source)}
    labels = dict(sorted(found.items()))
    index = {
        "format": FORMAT,
        "source": str(source),
        "config": config_name,
        "quality": quality,
        "sizes": [_as_json(size) for size in sizes.values()],
        "images": len(images),
        "labels": len(labels),
        "info_files": {
            os.path.relpath(dataset.ann_file, dataset.data_root): _digest(Path(dataset.ann_file))
            for dataset in datasets
        },
        "versions": {"opencv": cv2.__version__, "numpy": np.__version__},
    }
    return PackingPlan(source, images, labels, quality, index)


def _data_sets(cfg: Config) -> list[OccupancyDataset]:
    """Build the data sets of all splits, without repetitions."""
    leaves: list[dict[str, Any]] = []
    for split in ("train", "val", "test"):
        loader = cfg.get(f"{split}_dataloader")
        for leaf in leaf_configs(loader["dataset"].to_dict()) if loader else ():
            if leaf not in leaves:
                leaves.append(leaf)
    with named_config_keys(cfg):
        datasets = [DATASETS.build(leaf) for leaf in leaves]
    found = [dataset for dataset in datasets if isinstance(dataset, OccupancyDataset)]
    if not found or len(found) < len(datasets):
        raise ConfigError("the config has data sets that load no camera images: leave them out")
    return found


def _common_root(datasets: list[OccupancyDataset]) -> Path:
    roots = sorted({str(Path(dataset.data_root).resolve()) for dataset in datasets})
    if len(roots) > 1:
        raise ConfigError(
            f"the config reads several data roots ({', '.join(roots)}): pack them one by one, "
            "with a config for each"
        )
    packed = datasets[0].packed
    if packed is not None:
        raise ConfigError(
            f"data_root {roots[0]} is packed already: set data_root to {packed.source}, from which "
            "it was made"
        )
    return Path(roots[0])


def _step(dataset: OccupancyDataset, kind: type) -> Any:
    """Return the first transform of a class."""
    for step in dataset.pipeline.transforms:
        if isinstance(step, kind):
            return step
    raise ConfigError(f"the pipeline has no {kind.__name__}, so there is nothing to pack")


def _relative(paths: list[bytes]) -> list[str]:
    names = [path.decode() for path in paths]
    for name in names:
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise ConfigError(
                f"image {name} lies outside of the data root: move the images into it, or write "
                "the info file again with scripts/gen_sweep_info.py"
            )
    return names


def _labels(dataset: OccupancyDataset, source: Path) -> Iterator[tuple[str, LabelPacker]]:
    """Yield the existing label files of a data set, relative to the data root."""
    for step in dataset.pipeline.transforms:
        pack = _LABEL_PACKERS.get(type(step))
        if pack is None:
            continue
        for row in range(len(dataset)):
            path = os.path.relpath(step.label_path(dataset.get_sample(row)), dataset.data_root)
            if not path.startswith("..") and (source / path).is_file():
                yield path, pack


def _as_json(size: StoredSize) -> dict[str, Any]:
    return {"raw_hw": list(size.raw_hw), "full_hw": list(size.full_hw), "top": size.top}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
