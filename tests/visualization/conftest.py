"""A nuScenes-like data set of two samples, written by each test run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import Tensor, nn

from loaders.info_io import CAMERAS, save_infos
from scripts.visualization.palette import OCC3D_CLASSES
from scripts.visualization.sample_view import CameraImage, SampleView

ROOT = Path(__file__).resolve().parents[2]
FREE = 17
SHAPE = (40, 40, 16)

CONFIG = """
custom_imports = dict(
    imports=['models.register', 'loaders.register'], allow_failed_imports=False)
default_scope = 'mmengine'
model = dict(type='EchoOccupancyModel')
test_dataloader = dict(dataset=dict(
    type='NuScenesOcc3DDataset', data_root={root!r}, ann_file='infos.pkl', num_frames=2,
    pc_range=[-8.0, -8.0, -1.0, 8.0, 8.0, 5.4], voxel_size=[0.4, 0.4, 0.4],
    test_mode=True, with_ray_origins=True,
    pipeline=[
        dict(type='DrawImageAug', raw_hw=(36, 64), final_hw=(32, 64)),
        dict(type='LoadMultiViewImages', raw_hw=(36, 64)),
        dict(type='LoadOcc3DLabels'),
        dict(type='PackOccSample')]))
test_evaluator = [dict(type='OccupancyMetric', mask='camera'), dict(type='RayIoUMetric')]
"""


@MODELS.register_module(force=True)
class EchoOccupancyModel(BaseModel):
    """Predict the ground truth without cars and with an additional tower."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(
        self, inputs: dict[str, Any], data_samples: list[BaseDataElement], mode: str = "tensor"
    ) -> Any:
        assert mode == "predict"
        for sample in data_samples:
            grid: Tensor = sample.voxel_semantics.clone()
            grid[grid == 4] = FREE
            grid[30:32, 30:32, 3:9] = 15
            sample.pred_coords = (grid != FREE).nonzero()
            sample.pred_labels = grid[grid != FREE].long()
            sample.pred_scores = torch.ones(len(sample.pred_labels))
        return data_samples


def street_grid() -> np.ndarray:
    """Return a road with sidewalks, a car and a house, uint8 [40, 40, 16]."""
    grid = np.full(SHAPE, FREE, dtype=np.uint8)
    grid[:, :, 2] = 11
    grid[:, :8, 2] = 13
    grid[:, 32:, 2] = 13
    grid[28:36, 12:16, 3:6] = 4
    grid[10:20, 34:39, 3:12] = 15
    return grid


@pytest.fixture(autouse=True)
def _fresh_scope() -> Iterator[None]:
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Run on one thread: on a busy machine threads slow these small pictures down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def view() -> SampleView:
    """Return a sample with everything that a sheet can show."""
    truth = street_grid()
    prediction = truth.copy()
    prediction[truth == 4] = FREE
    prediction[30:32, 30:32, 3:9] = 15
    images = []
    for i, name in enumerate(CAMERAS):
        tone = np.full((36, 64, 3), (40 * i, 255 - 40 * i, 90), dtype=np.uint8)
        images.append(CameraImage(name, Image.fromarray(tone)))
    return SampleView(
        index=4,
        total=81,
        scene_name="scene-0103",
        sample_token="3e8750f331d7499e9b5123e9eb70f2e2",
        class_names=OCC3D_CLASSES,
        empty_label=FREE,
        grid_min=(-8.0, -8.0, -1.0),
        voxel_size=(0.4, 0.4, 0.4),
        prediction=prediction,
        truth=truth,
        scored=np.ones(SHAPE, dtype=bool),
        images=tuple(images),
        scores=(("mIoU", 23.41), ("IoU", 44.0), ("RayIoU", 34.22), ("@1 m", 30.1)),
    )


def _pose(index: int) -> dict[str, Any]:
    return {
        "ego2global_translation": [10.0 * index, 0.0, 0.0],
        "ego2global_rotation": [1.0, 0.0, 0.0, 0.0],
    }


def write_data_set(root: Path) -> Path:
    """Write images, labels, info file and config; return the config's path."""
    generator = np.random.default_rng(0)
    infos = []
    for index in range(2):
        cams = {}
        for camera in CAMERAS:
            path = Path("samples", camera, f"{index}.jpg")
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            noise = generator.integers(0, 255, (36, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / path)
            cams[camera] = {
                "data_path": str(path),
                "timestamp": 500_000 * index,
                "cam_intrinsic": np.array([[50.0, 0, 32], [0, 50.0, 18], [0, 0, 1]]),
                "sensor2global_rotation": np.eye(3),
                "sensor2global_translation": np.zeros(3),
            }
        info = {
            "token": f"{index:032x}",
            "scene_name": "scene-0916",
            "scene_token": "scene",
            "lidar_token": f"lidar{index}",
            "timestamp": 500_000 * index,
            "lidar_path": "none.bin",
            "lidar2ego_translation": [0.9, 0.0, 1.8],
            "lidar2ego_rotation": [1.0, 0.0, 0.0, 0.0],
            "cams": cams,
            "cam_sweeps": [],
            "lidar_sweeps": [],
            **_pose(index),
        }
        infos.append(info)
        folder = root / "gts" / info["scene_name"] / info["token"]
        folder.mkdir(parents=True)
        visible = np.ones(SHAPE, dtype=np.uint8)
        np.savez_compressed(
            folder / "labels.npz", semantics=street_grid(), mask_camera=visible, mask_lidar=visible
        )
    save_infos(root / "infos.pkl", infos, {"version": "v1.0-mini"})
    config = root / "tiny-street.py"
    config.write_text(CONFIG.format(root=str(root)))
    return config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return the config of a tiny data set and model."""
    return write_data_set(tmp_path)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a checkpoint of the tiny model."""
    path = tmp_path / "tiny.pth"
    torch.save({"state_dict": EchoOccupancyModel().state_dict(), "meta": {}}, path)
    return path
