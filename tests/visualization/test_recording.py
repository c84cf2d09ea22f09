"""Recordings are read with Rerun's reader, which is independent of the writer."""

from __future__ import annotations

import io
from collections import Counter
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image
from torch import Tensor, nn

from scripts.visualization.palette import OCC3D_CLASSES
from scripts.visualization.recording import split_projection
from tests.visualization.conftest import FREE, EchoOccupancyModel, street_grid, write_data_set
from visualize import main

rerun = pytest.importorskip("rerun", reason="no rerun-sdk: run make setup")

QUERIES = 5


class FixedPoints(nn.Module):
    """Head with known points: query q at x = q m, point r at r m above."""

    def forward(self) -> SimpleNamespace:
        return SimpleNamespace(
            init_points=self.normalised(1),
            points=[self.normalised(2), self.normalised(3)],
            sampling_points=[torch.zeros(1, QUERIES, 2, 2, 3)] * 2,
        )

    @staticmethod
    def normalised(count: int) -> Tensor:
        """Return [1, Q, R, 3] within the grid's range, which starts at (-8, -8, -1)."""
        points = torch.zeros(1, QUERIES, count, 3)
        points[..., 0] = torch.arange(QUERIES)[None, :, None] + 8.0
        points[..., 1] = 8.0
        points[..., 2] = torch.arange(count)[None, None] + 1.0
        return points / torch.tensor([16.0, 16.0, 6.4])


@MODELS.register_module(force=True)
class EchoWithQueries(EchoOccupancyModel):
    """The echoing model with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.pts_bbox_head = FixedPoints()

    def forward(self, inputs: dict[str, Any], data_samples: list[Any], mode: str = "tensor") -> Any:
        self.pts_bbox_head()
        return super().forward(inputs, data_samples, mode)


class Recording:
    """Rows of a recording: the components of each entity at each sample."""

    def __init__(self, path: Path, root: Path) -> None:
        self.root = root
        recording = rerun.dataframe.load_recording(str(path))
        table = recording.view(index="sample", contents="/**").select().read_all()
        times = {"time": table.column("time").cast("int64").to_pylist()}  # nanoseconds
        names = [n for n in table.column_names if n not in ("log_time", "log_tick", "time")]
        self.columns = {name: table.column(name).to_pylist() for name in names} | times
        static = recording.view(index="sample", contents="/**").select_static().read_all()
        self.static = {name: static.column(name).to_pylist()[0] for name in static.column_names}
        self.samples = self.columns["sample"]

    def rows(self, entity: str, component: str) -> list[Any]:
        """Return the values of a component at each sample; None if nothing was logged."""
        found = [
            values
            for name, values in {**self.columns, **self.static}.items()
            if name.startswith(f"/{entity}:") and name.split(":")[1].endswith(component)
        ]
        assert len(found) == 1, (entity, component, sorted({**self.columns, **self.static}))
        return found[0]

    def entities(self) -> set[str]:
        names = {*self.columns, *self.static}
        return {name.split(":")[0].removeprefix("/") for name in names if ":" in name}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Recording:
    tmp_path = tmp_path_factory.mktemp("recording")
    config, weights = write_data_set(tmp_path), tmp_path / "tiny.pth"
    torch.save({"state_dict": EchoWithQueries().state_dict(), "meta": {}}, weights)
    # Points on disk, 2 m ahead of the LiDAR, at which the info file's name points.
    points = np.zeros((7, 5), dtype=np.float32)
    points[:, 0], points[:, 1] = 2.0, np.arange(7)
    points.tofile(tmp_path / "none.bin")
    command = ["--config", str(config), "--weights", str(weights), "--vis-gt", "--vis-input"]
    options = ["--cfg-options", "model.type=EchoWithQueries"]
    assert main([*command, "--format", "rrd", "--out", str(tmp_path / "out"), *options]) == 0
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "scene-0916.rrd"
    return Recording(path, tmp_path)


def visible(grid: np.ndarray) -> Counter:
    """Count the voxels per class with a free neighbour, or at the border, one by one."""
    counts: Counter = Counter()
    padded = np.pad(grid, 1, constant_values=FREE)
    for x, y, z in product(*map(range, grid.shape)):
        if grid[x, y, z] != FREE:
            cube = padded[x : x + 3, y : y + 3, z : z + 3]
            around = [cube[0, 1, 1], cube[2, 1, 1], cube[1, 0, 1], cube[1, 2, 1], cube[1, 1, 0]]
            if FREE in [*around, cube[1, 1, 2]]:
                counts[OCC3D_CLASSES[grid[x, y, z]]] += 1
    return counts


def test_recording_holds_what_was_shown(recorded):
    assert recorded.samples == [0, 1]
    truth = street_grid()
    prediction = truth.copy()
    prediction[truth == 4] = FREE
    prediction[30:32, 30:32, 3:9] = 15
    for kind, grid in (("ground_truth", truth), ("prediction", prediction)):
        for name, count in visible(grid).items():
            entity = f"world/ego/grid/{kind}/{name}"
            for row in recorded.rows(entity, "PoseTranslation3D"):
                assert len(row) == count, entity
            sizes = np.array(recorded.rows(entity, "HalfSize3D")[0])
            assert np.allclose(sizes, 0.2)
    assert "world/ego/grid/prediction/car" not in recorded.entities()
    # The car is missed and the tower invented, as the model is made.
    for kind in ("right", "missed", "invented"):
        assert f"world/ego/grid/difference/{kind}" in recorded.entities()
    assert "world/ego/grid/difference/wrong_class" not in recorded.entities()


def test_boxes_lie_where_the_voxels_are(recorded):
    (row, _) = recorded.rows("world/ego/grid/ground_truth/car", "PoseTranslation3D")
    low, high = np.min(row, axis=0), np.max(row, axis=0)
    # Voxels 28 to 35 by 12 to 15 by 3 to 5 of 0.4 m from (-8, -8, -1).
    assert np.allclose(low, [28.5 * 0.4 - 8, 12.5 * 0.4 - 8, 3.5 * 0.4 - 1], atol=1e-5)
    assert np.allclose(high, [35.5 * 0.4 - 8, 15.5 * 0.4 - 8, 5.5 * 0.4 - 1], atol=1e-5)


def test_queries_and_their_centres_per_layer(recorded):
    for name, count in (("initial", 1), ("layer_1", 2), ("layer_2", 3)):
        entity = f"world/ego/grid/queries/{name}"
        points = np.array(recorded.rows(f"{entity}/points", "Position3D")[1])
        assert points.shape == (QUERIES * count, 3)
        expected = [(q, 0.0, r) for q in range(QUERIES) for r in range(count)]
        assert np.allclose(points, expected, atol=1e-5)
        centres = np.array(recorded.rows(f"{entity}/centres", "Position3D")[1])
        assert np.allclose(centres, [(q, 0, (count - 1) / 2) for q in range(QUERIES)], atol=1e-5)


def test_ego_lidar_cameras_and_scores(recorded):
    moves = recorded.rows("world/ego", "Translation3D")
    assert np.allclose(np.reshape(moves, (2, 3)), [[0, 0, 0], [10, 0, 0]])
    track = np.array(recorded.rows("world/track", "LineStrip3D"), dtype=object)
    assert np.allclose(np.array(track.tolist(), dtype=float).reshape(-1, 3)[:, 0], [0, 10])
    points = np.array(recorded.rows("world/ego/lidar", "Position3D")[0])
    # The LiDAR is mounted at (0.9, 0, 1.8).
    assert np.allclose(points, [(2.9, y, 1.8) for y in range(7)], atol=1e-5)
    cameras = {e for e in recorded.entities() if e.startswith("world/ego/cameras/")}
    assert len(cameras) == 6
    for camera in cameras:
        images = [
            Image.open(io.BytesIO(bytes(np.array(blob, dtype=np.uint8))))
            for blob in recorded.rows(camera, "Blob")
        ]
        name = f"CAM_{camera.rsplit('/', 1)[1].upper()}"
        for i, image in enumerate(images):
            with Image.open(recorded.root / "samples" / name / f"{i}.jpg") as original:
                # Noise is what JPEG keeps worst.
                difference = np.asarray(image).astype(int) - np.asarray(original)
            assert np.abs(difference).mean() < 12
        (matrix, _) = recorded.rows(camera, "PinholeProjection")
        # Column by column.
        assert np.allclose(np.reshape(matrix, (3, 3)).T, [[50, 0, 32], [0, 50, 18], [0, 0, 1]])
    assert np.diff(recorded.columns["time"]) == [500_000_000]
    (score, _) = recorded.rows("scores/mIoU", "Scalar")
    assert 0 < np.reshape(score, -1)[0] < 100


def test_projection_falls_apart_into_intrinsic_and_pose():
    rng = np.random.default_rng(0)
    for _ in range(20):
        intrinsic = np.array(
            [
                [rng.uniform(300, 2000), rng.normal(), rng.uniform(0, 1600)],
                [0, rng.uniform(300, 2000), rng.uniform(0, 900)],
                [0, 0, 1],
            ]
        )
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        rotation *= np.sign(np.linalg.det(rotation))
        shift = rng.normal(size=3) * 5
        found, pose = split_projection(intrinsic @ np.column_stack([rotation, shift]))
        assert np.allclose(found, intrinsic, atol=1e-6)
        assert np.allclose(pose[:3, :3], rotation, atol=1e-9)
        assert np.allclose(pose[:3, 3], shift, atol=1e-9)
