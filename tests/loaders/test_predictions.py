"""Predictions on disk: formats, damage, and scores without a model."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import METRICS

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.errors import BadDataError, MissingDataError
from loaders.predictions import load_prediction, save_prediction, save_submission
from scripts.scoring import predictions as score_predictions

SHAPE, FREE = (12, 7, 5), 3
TRAIN, VAL = "nuscenes_infos_train_mini_sweep.pkl", "nuscenes_infos_val_mini_sweep.pkl"

grids = st.integers(0, 2**32).map(
    lambda seed: np.random.default_rng(seed).integers(0, FREE + 1, SHAPE, dtype=np.uint8)
)


def sparse(grid):
    coords = np.random.default_rng(0).permutation(np.argwhere(grid != FREE))
    return coords, grid[tuple(coords.T)]


def dense(loaded):
    grid = np.full(SHAPE, FREE, dtype=np.uint8)
    grid[tuple(loaded["pred_coords"].T)] = loaded["pred_labels"]
    return grid


@given(grids)
def test_every_form_gives_the_same_prediction(tmp_path_factory, grid):
    folder = tmp_path_factory.mktemp("predictions")
    coords, labels = sparse(grid)
    paths = [
        save_prediction(folder, "sparse", coords, labels, np.linspace(0, 1, len(labels))),
        save_submission(folder, "submission", coords, labels, SHAPE, FREE),
    ]
    np.savez(folder / "dense.npz", semantics=grid, other=np.zeros(3))
    np.savez(folder / "all.npz", coords=np.argwhere(grid < 9), labels=grid.ravel())
    for path in (*paths, folder / "dense.npz", folder / "all.npz"):
        loaded = load_prediction(path, SHAPE, FREE)
        np.testing.assert_array_equal(dense(loaded), grid)
        assert (loaded["pred_labels"] != FREE).all()
    with np.load(paths[1]) as file:
        np.testing.assert_array_equal(file["arr_0"], grid)
    with np.load(paths[0]) as file:  # scores follow their voxels
        ranks = {tuple(c): i for i, c in enumerate(coords)}
        order = [ranks[tuple(c)] for c in file["coords"]]
        wanted = np.linspace(0, 1, len(labels))[order]
        np.testing.assert_allclose(file["scores"], wanted, atol=1e-3)


def test_empty_prediction(tmp_path):
    path = save_prediction(tmp_path, "a", np.zeros((0, 3), int), np.zeros(0, int))
    assert len(load_prediction(path, SHAPE, FREE)["pred_labels"]) == 0


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(coords=np.zeros((2, 3), int)), "only one of 'coords' and 'labels'"),
        (dict(coords=np.zeros((2, 2), int), labels=np.zeros(2, int)), r"expected \[n, 3\]"),
        (dict(coords=np.zeros((2, 3)), labels=np.zeros(2, int)), "not integers"),
        (dict(coords=np.full((1, 3), 12), labels=np.zeros(1, int)), "outside the grid"),
        (dict(coords=np.full((1, 3), -1), labels=np.zeros(1, int)), "outside the grid"),
        (dict(coords=np.zeros((1, 3), int), labels=np.full(1, 4)), "classes from 4 to 4"),
        (dict(semantics=np.zeros((2, 2, 2), int)), r"expected integers \(12, 7, 5\)"),
        (dict(semantics=np.zeros(SHAPE)), "holds float64"),
        (dict(a=np.zeros(SHAPE, int), b=np.zeros(SHAPE, int)), r"has neither .* \(found a, b\)"),
        (dict(), "found nothing"),
        (dict(semantics=np.array([{}], dtype=object)), "is broken"),
    ],
)
def test_wrong_content(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadDataError, match=rf"a\.npz.*{message}"):
        load_prediction(tmp_path / "a.npz", SHAPE, FREE)


def test_missing_and_truncated(tmp_path):
    with pytest.raises(MissingDataError, match=r"a\.npz does not exist"):
        load_prediction(tmp_path / "a.npz", SHAPE, FREE)
    path = save_submission(tmp_path, "a", np.zeros((1, 3), int), np.zeros(1, int), SHAPE, FREE)
    for kept in (0, 20, -10):
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(BadDataError, match=r"a\.npz is broken"):
            load_prediction(path, SHAPE, FREE)


CONFIG = """
custom_imports = dict(imports=['loaders.register'], allow_failed_imports=False)
test_dataloader = dict(dataset=dict(
    type='{kind}', data_root='{root}', ann_file='{ann_file}', num_frames=1, with_ray_origins=True,
    pipeline=[dict(type='{labels}', label_cache_mb=4)]))
test_evaluator = [dict(type='OccupancyMetric', mask={mask}), dict(type='RayIoUMetric')]
"""


@pytest.fixture(params=["Occ3D", "OpenOccupancy"])
def predicted(mini, tmp_path, request):
    """Return a config, a folder of predictions, and the direct scores of these predictions."""
    is_occ3d = request.param == "Occ3D"
    config = tmp_path / "config.py"
    config.write_text(
        CONFIG.format(
            kind="NuScenesOcc3DDataset" if is_occ3d else "NuScenesOccupancyDataset",
            labels="LoadOcc3DLabels" if is_occ3d else "LoadOccupancyLabels",
            mask="'camera'" if is_occ3d else "'valid'",
            root=mini.root,
            ann_file=TRAIN,
        )
    )
    cfg = score_predictions.load_config(str(config), {})
    scorer = score_predictions.split_scorer(cfg)
    metrics = [METRICS.build(dict(entry)) for entry in cfg.test_evaluator]
    save = METRICS.build(dict(type="SavePredictions", out_dir=str(tmp_path / "saved")))
    rng = np.random.default_rng(0)
    for metric in metrics:
        metric.dataset_meta = scorer.dataset.metainfo
    for idx in range(len(scorer.dataset)):
        sample = vars(scorer.dataset[idx])
        free = len(sample["class_names"])
        coords = np.argwhere(sample["voxel_semantics"] != free)
        coords = coords[rng.random(len(coords)) < 0.7]
        labels = np.where(rng.random(len(coords)) < 0.2, 4, 11)
        sample.update(pred_coords=torch.tensor(coords), pred_labels=torch.tensor(labels))
        for metric in (*metrics, save):
            metric.process(None, [sample])
    assert save.evaluate(6) == {"saved_predictions": 6}
    expected = {k: v for metric in metrics for k, v in metric.evaluate(6).items()}
    return config, tmp_path / "saved", expected


def test_saved_predictions_score_as_they_did(predicted, tmp_path, capsys):
    config, folder, expected = predicted
    assert 0 < expected["ray/RayIoU"] < 100
    for workers in ("0", "2", "3"):
        out = tmp_path / f"{workers}.json"
        arguments = ["--config", str(config), "--predictions", str(folder), "--workers", workers]
        assert score_predictions.main([*arguments, "--out", str(out)]) == 0
        report = json.loads(out.read_text())
        assert report["metrics"] == expected
        assert report["num_samples"] == 6
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["occ3d/mIoU", "|", f"{expected['occ3d/mIoU']:.2f}"] in lines


def test_masks_of_the_command_line(predicted, tmp_path, capsys):
    config, folder, _ = predicted
    out = tmp_path / "scores.json"
    arguments = ["--config", str(config), "--predictions", str(folder), "--out", str(out)]
    code = score_predictions.main([*arguments, "--masks", "none"])
    if "mask='valid'" in config.read_text():
        assert code == 2 and "leave --masks out" in capsys.readouterr().err
    else:
        assert code == 0 and "occ3d_none/mIoU" in json.loads(out.read_text())["metrics"]


def test_missing_prediction_and_folder(predicted, tmp_path, capsys):
    config, folder, _ = predicted
    arguments = ["--config", str(config), "--predictions"]
    assert score_predictions.main([*arguments, str(tmp_path / "none")]) == 2
    assert "none does not exist" in capsys.readouterr().err
    first = next(folder.iterdir())
    for damage, message in ((first.unlink, "predict all"), (first.touch, "npz is broken")):
        damage()
        for workers in ("0", "2"):
            assert score_predictions.main([*arguments, str(folder), "--workers", workers]) == 2
            error = capsys.readouterr().err
            assert message in error and "Traceback" not in error


def test_submission_of_the_benchmark(mini, tmp_path):
    save = METRICS.build(
        dict(type="SavePredictions", out_dir=str(tmp_path / "sub"), submission=True)
    )
    sample = dict(
        sample_token="t",
        pred_coords=torch.tensor([[1, 2, 3]]),
        pred_labels=torch.tensor([4]),
        pc_range=(-40, -40, -1, 40, 40, 5.4),
        voxel_size=(0.4, 0.4, 0.4),
        class_names=["c"] * 17,
    )
    save.process(None, [sample, {**sample, "sample_token": "u", "replaces": 3}])
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["t.npz"]
    with np.load(tmp_path / "sub" / "t.npz") as file:
        grid = file["arr_0"]
    assert grid.shape == (200, 200, 16) and grid.dtype == np.uint8
    assert grid[1, 2, 3] == 4 and (grid == 17).sum() == grid.size - 1


def test_metric_that_needs_a_model_is_refused(mini, tmp_path, capsys):
    config = tmp_path / "config.py"
    text = CONFIG.replace("dict(type='RayIoUMetric')", "dict(type='SavePredictions', out_dir='x')")
    config.write_text(
        text.format(
            kind="NuScenesOcc3DDataset",
            labels="LoadOcc3DLabels",
            mask=None,
            root=mini.root,
            ann_file=VAL,
        )
    )
    arguments = ["--config", str(config), "--predictions", str(tmp_path)]
    assert score_predictions.main(arguments) == 2
    assert "SavePredictions cannot score" in capsys.readouterr().err


def test_a_full_disk_does_not_end_an_evaluation(tmp_path, monkeypatch):
    def full(file, **arrays):
        if list(tmp_path.glob("*.npz")):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, **arrays)

    write = np.savez_compressed
    monkeypatch.setattr(np, "savez_compressed", full)
    save = METRICS.build(dict(type="SavePredictions", out_dir=str(tmp_path)))
    one = dict(pred_coords=torch.zeros(1, 3, dtype=torch.int64), pred_labels=torch.zeros(1).long())
    for token in ("a", "b", "c"):
        save.process(None, [one | dict(sample_token=token)])
    assert save.evaluate(3) == {"saved_predictions": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
