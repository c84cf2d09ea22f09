"""A small toy data set, and models of the toy configs whose predictions depend on the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS, DefaultScope, init_default_scope

from models.inference import CameraFrame, Frame
from scripts.runtime.config import load_config
from scripts.sweep_infos.generator import command_parser, write_info_files
from scripts.toy_nuscenes.options import Options
from scripts.toy_nuscenes.writer import generate

ROOT = Path(__file__).resolve().parents[2]
SIZE_HW = (54, 96)
INFOS = "nuscenes_infos_train_mini_sweep.pkl"
V2 = "configs/toy/opusv2-nano_toy.py"
# Three frames of half a second, small images, few queries, and a threshold that untrained models
# pass.
CONFIG = """
_base_ = [{base!r}]
data_root = {root!r}
num_frames = 3
raw_hw, final_hw = {size!r}, (32, 96)
model = dict(pts_bbox_head=dict(score_thr=0.1, num_query=60))
val_dataloader = dict(dataset=dict(ann_file={infos!r}))
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _fresh_scope() -> Iterator[None]:
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data root: one scene of three key frames, with its info file."""
    root = tmp_path_factory.mktemp("inference") / "nuscenes"
    size = dict(width=SIZE_HW[1], height=SIZE_HW[0], lidar_azimuths=120)
    assert generate(root, Options(scenes=1, samples=3, **size), workers=0)
    arguments = ["--data-root", str(root), "--version", "v1.0-mini", "--no-progress"]
    write_info_files(command_parser().parse_args(arguments))
    return root


@dataclass
class ToyCase:
    """A config with weights, and what the data set and the model are without the Inferencer."""

    config: Path
    weights: Path
    info_file: Path

    def data_set(self) -> Any:
        cfg = load_config(self.config)
        init_default_scope("mmengine")
        return DATASETS.build(cfg.test_dataloader.dataset)

    def model(self, **changes: Any) -> Any:
        cfg = load_config(self.config)
        init_default_scope("mmengine")
        model = MODELS.build({**cfg.model, **changes}).eval()
        model.load_state_dict(torch.load(self.weights, weights_only=True)["state_dict"])
        return model


@torch.no_grad()
def data_set_predictions(toy_case: ToyCase) -> dict[str, tuple[np.ndarray, ...]]:
    """Voxels, labels and scores of every sample by its token, in the order of the data set."""
    model, dataset = toy_case.model(streaming=True, cached_frames=64), toy_case.data_set()
    found = {}
    for item in (dataset[i] for i in range(len(dataset))):
        inputs = {name: [value] for name, value in item["inputs"].items()}
        batch = dict(inputs=inputs, data_samples=[item["data_samples"]])
        (sample,) = model(**model.data_preprocessor(batch, False), mode="predict")
        values = (sample.pred_coords, sample.pred_labels, sample.pred_scores)
        found[sample.sample_token] = tuple(value.numpy() for value in values)
    return found


def make_toy_case(folder: Path, root: Path, base: str, more: str = "") -> ToyCase:
    """Write weights that are off their initial values, at which images hardly matter."""
    path = folder / f"{Path(base).stem}.py"
    values = dict(base=str(ROOT / base), root=str(root), size=SIZE_HW, infos=INFOS)
    path.write_text(CONFIG.format(**values) + more)
    cfg = load_config(path)
    init_default_scope("mmengine")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    weights = path.with_suffix(".pth")
    torch.save({"state_dict": model.state_dict()}, weights)
    return ToyCase(path, weights, root / INFOS)


@pytest.fixture(scope="session")
def toy_case(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> ToyCase:
    """V2 on the toy data."""
    return make_toy_case(tmp_path_factory.mktemp("toy_case"), toy, V2)


def rig_frame(
    names: tuple[str, ...], time_s: float, seed: int = 0, size_hw: tuple[int, int] = SIZE_HW
) -> Frame:
    """A frame of noise: cameras that look around evenly from 1.5 m above the ground."""
    generator = np.random.default_rng(seed)
    cameras = {}
    for i, name in enumerate(names):
        yaw = 2 * np.pi * i / len(names)
        c, s = np.cos(yaw), np.sin(yaw)
        mount = np.eye(4)
        mount[:3, :3] = [[s, 0, c], [-c, 0, s], [0, -1, 0]]
        mount[:3, 3] = [c, s, 1.5]
        pixels = generator.integers(0, 255, (*size_hw, 3), dtype=np.uint8)
        focal, (height, width) = 0.6 * size_hw[1], size_hw
        intrinsics = [[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]
        cameras[name] = CameraFrame(pixels, intrinsics, mount, channel_order="bgr")
    return Frame(cameras, time_s=time_s)
