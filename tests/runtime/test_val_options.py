"""Options of val.py to score and write predictions, with a model that copies its labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import val
from loaders.predictions import save_prediction
from scripts import score_predictions
from scripts.runtime.errors import EXIT_USER_ERROR
from tests.loaders.conftest import MiniSet, mini  # noqa: F401 - a fixture

CONFIG = """
_base_ = [{runtime!r}]
custom_imports = dict(
    imports=['tiny_parts', 'loaders.register', 'scripts.runtime.register'],
    allow_failed_imports=False)
batch_size = 1
model = dict(type='CopyingModel')
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type='NuScenesOcc3DDataset', data_root={root!r}, test_mode=True, indices=5,
        ann_file='nuscenes_infos_train_mini_sweep.pkl', num_frames=1, with_ray_origins=True,
        pipeline=[
            dict(type='DrawImageAug', raw_hw=(90, 160), final_hw=(32, 96)),
            dict(type='LoadMultiViewImages', raw_hw=(90, 160), image_mode='fast'),
            dict(type='LoadOcc3DLabels'), dict(type='PackOccSample')]))
test_evaluator = [dict(type='OccupancyMetric', mask='camera'), dict(type='RayIoUMetric')]
test_cfg = dict()
"""


@pytest.fixture
def config(mini: MiniSet, tmp_path: Path, root: Path) -> Path:  # noqa: F811
    path = tmp_path / "copying.py"
    runtime = str(root / "configs/_base_/default_runtime.py")
    path.write_text(CONFIG.format(runtime=runtime, root=str(mini.root)))
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {"share": torch.tensor(0.6)}}, path)
    return path


def score(config: Path, out: Path, *extra: Any) -> dict[str, Any]:
    arguments = ["--config", config, "--work-dir", config.parent / "run", "--out", out, *extra]
    assert val.main([str(argument) for argument in arguments]) == 0
    return json.loads(out.read_text())


def test_saved_predictions_score_as_the_model_did(
    config: Path,
    weights: Path,
    tmp_path: Path,
    mini: MiniSet,  # noqa: F811
) -> None:
    saved, dense = tmp_path / "saved", tmp_path / "dense"
    report = score(
        config, tmp_path / "model.json", "--weights", weights,
        "--save-predictions", saved, "--submission", dense,
    )  # fmt: skip
    metrics = report["metrics"]
    assert metrics.pop("saved_predictions") == metrics.pop("submission_files") == 5
    assert 0 < metrics["ray/RayIoU"] < 100 and 0 < metrics["occ3d/mIoU"] < 100
    tokens = {path.stem for path in saved.iterdir()}
    assert tokens == {path.stem for path in dense.iterdir()} and len(tokens) == 5
    assert tokens <= set(mini.labels)
    for token in tokens:
        with np.load(dense / f"{token}.npz") as file:
            [grid] = file.values()
        with np.load(saved / f"{token}.npz") as file:
            coords, labels = file["coords"], file["labels"]
        assert grid.shape == (200, 200, 16) and (grid != 17).sum() == len(coords) > 0
        np.testing.assert_array_equal(grid[tuple(coords.T)], labels)
    for folder in (saved, dense):
        again = score(config, tmp_path / f"{folder.name}.json", "--predictions", folder)
        assert again["metrics"] == metrics
        assert again["predictions"] == str(folder) and again["num_samples"] == 5


def test_table_beside_the_json(config: Path, weights: Path, tmp_path: Path) -> None:
    report = score(config, tmp_path / "a.json", "--weights", weights)
    lines = (tmp_path / "a.txt").read_text().splitlines()
    text = "\n".join(lines)
    assert f"config: {config}" in lines and report["checkpoint"]["sha256"] in text
    assert f"torch {report['versions']['torch']}" in text and f"time: {report['time']}" in lines
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert ["ray/RayIoU", f"{report['metrics']['ray/RayIoU']:.2f}"] in cells
    ground = [report["metrics"][f"{kind}/IoU_driveable_surface"] for kind in ("occ3d", "ray")]
    assert ["driveable_surface", *(f"{value:.2f}" for value in ground)] in cells


def test_masks(config: Path, weights: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    alone = score(
        config, tmp_path / "a.json", "--weights", weights, "--save-predictions", saved
    )["metrics"]  # fmt: skip
    every = ["--masks", "camera", "lidar", "both", "none"]
    of_model = score(config, tmp_path / "b.json", "--weights", weights, *every)["metrics"]
    of_files = score(config, tmp_path / "c.json", "--predictions", saved, *every)["metrics"]
    assert of_model == of_files
    assert of_model["occ3d/mIoU"] == alone["occ3d/mIoU"]
    assert of_model["ray/RayIoU"] == alone["ray/RayIoU"]
    values = [of_model[f"occ3d{mask}/mIoU"] for mask in ("", "_lidar", "_both", "_none")]
    assert len(set(values)) == 4  # the masks of the hand-made data are random, and independent
    lidar = ["--cfg-options", "test_evaluator.0.mask=lidar"]
    by_field = score(config, tmp_path / "d.json", "--predictions", saved, *lidar)["metrics"]
    assert by_field["occ3d/mIoU"] == of_model["occ3d_lidar/mIoU"]
    only = score(config, tmp_path / "e.json", "--predictions", saved, "--masks", "lidar")
    assert "occ3d/mIoU" not in only["metrics"] and "occ3d_lidar/mIoU" in only["metrics"]


def test_several_data_sets(config: Path, weights: Path, tmp_path: Path) -> None:
    """Indices within the data sets are equal; every sample of both is scored."""
    child, alone = tmp_path / "concat.py", tmp_path / "alone.py"

    def write(path: Path, dataset: str) -> None:
        path.write_text(
            config.read_text()
            + f"""
train = test_dataloader.pop('dataset')
val = dict(train, ann_file='nuscenes_infos_val_mini_sweep.pkl', indices=3)
test_dataloader.update(
    sampler=dict(type='EpochSampler', shuffle=False), dataset={dataset})
del train, val
"""
        )

    write(child, "dict(type='ConcatDataset', datasets=[train, val])")
    saved = tmp_path / "saved"
    options = ["--weights", weights, "--save-predictions", saved]
    of_model = score(child, tmp_path / "a.json", *options)
    assert of_model["num_samples"] == of_model["metrics"].pop("saved_predictions") == 8
    (log,) = (child.parent / "run").glob("*/*.log")
    assert "samples scored" not in log.read_text()
    of_files = score(child, tmp_path / "b.json", "--predictions", saved)
    assert of_files["metrics"] == of_model["metrics"]
    scores = []
    for name in ("train", "val"):
        write(alone, name)
        part = score(alone, tmp_path / "c.json", "--predictions", saved)
        scores.append(part["metrics"]["occ3d/IoU"])
    scores.sort()
    assert scores[0] < of_model["metrics"]["occ3d/IoU"] < scores[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --weights CHECKPOINT for a model, or --predictions DIR"),
        (["--predictions", "a", "--weights", "w"], "without a model: leave --weights out"),
        (["--predictions", "a", "--submission", "b"], "leave --submission out"),
        (["--predictions", "a", "--save-predictions", "b"], "leave --save-predictions out"),
        (["--predictions", "nowhere"], "folder nowhere does not exist"),
        (["--weights", "w", "--save-predictions", "b", "--submission", "b"], "give two folders"),
    ],
)
def test_contradictions(config: Path, options: list[str], message: str, capsys) -> None:
    common = ["--config", str(config), "--work-dir", str(config.parent / "run")]
    assert val.main([*common, *options]) == EXIT_USER_ERROR
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]


@pytest.mark.parametrize(
    ("evaluator", "message"),
    [
        ("dict(type='OccupancyMetric', mask='valid')", "mark ignored voxels instead"),
        ("[dict(type='RayIoUMetric')]", "has no OccupancyMetric to change"),
    ],
)
def test_masks_that_do_not_fit(config: Path, evaluator: str, message: str, capsys) -> None:
    child = config.parent / "child.py"
    text = config.read_text().split("test_evaluator")
    child.write_text(f"{text[0]}\ntest_evaluator = {evaluator}\ntest_cfg = dict()\n")
    for what in (["--weights", "w"], ["--predictions", str(config.parent)]):
        options = ["--config", str(child), "--work-dir", str(config.parent / "run"), *what]
        assert val.main([*options, "--masks", "camera"]) == EXIT_USER_ERROR
        assert message in capsys.readouterr().err


def test_score_predictions_is_val_with_predictions(
    config: Path,
    tmp_path: Path,
    mini: MiniSet,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Predictions that are correct outside the cameras' view and empty inside it."""
    folder = tmp_path / "unseen"
    folder.mkdir()
    for token, label in mini.labels.items():
        coords = np.argwhere((label["semantics"] != 17) & ~label["mask_camera"])
        save_prediction(folder, token, coords, label["semantics"][tuple(coords.T)].astype(np.int64))
    common = ["--config", str(config), "--work-dir", str(tmp_path / "run")]
    common += ["--predictions", str(folder)]
    for masks in ([], ["none"], ["lidar", "both"]):
        reports = []
        options = ["--masks", *masks] if masks else []
        for command, workers in ((val, "0"), (score_predictions, "2")):
            out = tmp_path / "scores.json"
            arguments = [*common, "--workers", workers, "--out", str(out), *options]
            assert command.main(arguments) == 0
            reports.append(json.loads(out.read_text())["metrics"])
        assert reports[0] == reports[1]
        if not masks:
            assert reports[0]["occ3d/mIoU"] == 0
        if masks == ["none"]:
            # Nothing wrong is predicted: a class's IoU is the share of it that no camera sees.
            truth = _scored(mini)
            shares = []
            for name in range(17):
                of_class = [label["semantics"] == name for label in truth]
                total = sum(int(mask.sum()) for mask in of_class)
                unseen = sum(
                    int((mask & ~label["mask_camera"]).sum())
                    for mask, label in zip(of_class, truth, strict=True)
                )
                shares += [100 * unseen / total] if total else []
            assert reports[0]["occ3d_none/mIoU"] == pytest.approx(np.mean(shares), abs=0.006)
        if masks == ["lidar", "both"]:
            assert reports[0]["occ3d_lidar/mIoU"] > 0 and reports[0]["occ3d_both/mIoU"] == 0
    assert score_predictions.main(["--config", str(config)]) == EXIT_USER_ERROR
    assert "required: --predictions" in capsys.readouterr().err


def _scored(mini: MiniSet) -> list[dict[str, np.ndarray]]:  # noqa: F811
    """Return the labels of the scored samples: the first five of the training scenes."""
    tokens = [*mini.samples["scene-0061"], *mini.samples["scene-0553"]][:5]
    return [mini.labels[token] for token in tokens]
