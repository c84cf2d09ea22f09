"""Choice of predictions and samples in visualize.py."""

from __future__ import annotations

import numpy as np
import pytest
from mmengine.config import Config

from loaders.predictions import save_prediction
from scripts.visualization.source import SampleSource, Wanted
from tests.visualization.conftest import FREE, street_grid, write_data_set
from visualize import main

SMALL = ["--scale", "0.3"]


def write_predictions(folder) -> str:
    """Write the predictions of the fixtures' echoing model."""
    folder.mkdir()
    grid = street_grid()
    grid[grid == 4] = FREE
    grid[30:32, 30:32, 3:9] = 15
    coords = np.argwhere(grid != FREE)
    for index in range(2):
        save_prediction(folder, f"{index:032x}", coords, grid[tuple(coords.T)])
    return str(folder)


def test_predictions_on_disk_look_as_the_model_s(config, weights, tmp_path):
    folder = write_predictions(tmp_path / "predictions")
    common = ["--config", str(config), "--vis-gt", "--index", "1", *SMALL]
    for name, source in (("a", ["--weights", str(weights)]), ("b", ["--predictions", folder])):
        assert main([*common, *source, "--out", str(tmp_path / name)]) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 2 and names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_scene_and_view(config, tmp_path):
    out = tmp_path / "out"
    command = ["--config", str(config), "--vis-gt", "--scene", "scene-0916", "--view", "front"]
    assert main([*command, *SMALL, "--out", str(out)]) == 0
    names = sorted(path.name for path in out.iterdir())
    assert [name[:5] for name in names] == ["00000", "00001", "overv"]
    assert all(name.endswith("_front.png") for name in names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--vis-gt", "--scene", "scene-0961"], ["scene-0961", "scene-0916"]),
        (["--predictions", "none"], ["none", "does not exist"]),
        (["--predictions", ".", "--weights", "x.pth"], ["--weights", "--predictions"]),
        (["--predictions", "."], [f"{0:032x}.npz", "does not exist"]),
    ],
)
def test_impossible_choices_end_in_one_sentence(arguments, words, config, tmp_path, capsys):
    command = ["--config", str(config), "--out", str(tmp_path / "out"), *SMALL]
    assert main([*command, *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line


def test_lidar_files_of_each_data_set_have_columns_of_their_own(config, tmp_path):
    rng = np.random.default_rng(0)
    points = rng.normal((0, 0, -1, 90), (20, 9, 1, 20), (120, 4)).astype(np.float32)
    data_sets = []
    for columns in (4, 3):
        root = tmp_path / f"columns{columns}"
        write_data_set(root)
        points[:, :columns].tofile(root / "none.bin")
        steps = [dict(type="LoadLidarSweeps", load_dim=columns), dict(type="LoadOcc3DLabels")]
        data_sets.append(dict(data_root=str(root), pipeline=steps))
    cfg = Config.fromfile(config)
    leaf = dict(cfg.test_dataloader.dataset)
    data_sets = [{**leaf, **changes} for changes in data_sets]
    cfg.test_dataloader.dataset = dict(type="ConcatDataset", datasets=data_sets)
    source = SampleSource(cfg, None, None, Wanted(truth=True, lidar=True))
    mounting = np.array([0.9, 0.0, 1.8])
    for index in range(4):
        drawn = source.view(index).lidar
        np.testing.assert_allclose(drawn, points[:, :3] + mounting, atol=1e-5)
