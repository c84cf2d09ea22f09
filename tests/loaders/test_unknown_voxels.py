"""Voxels of unknown state and labels without masks: loading, metrics and losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.registry import METRICS

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.errors import BadDataError, LoaderConfigError, UnknownClassError
from loaders.metrics.ray_cache import RayCache
from loaders.metrics.ray_iou import cast_label_rays, sample_ray_counts
from loaders.sample import UNKNOWN_LABEL, OccSample
from loaders.transforms.labels import LoadOcc3DLabels
from loaders.transforms.occupancy_labels import LoadOccupancyLabels
from scripts.visualization.sample_view import without_unknown

GRID, FREE, CLASSES = (20, 20, 5), 2, ("car", "bus")
RANGE, VOXEL = (-4.0, -4.0, -1.0, 4.0, 4.0, 1.0), (0.4, 0.4, 0.4)


def make_sample(root="", **changes):
    values = dict(
        sample_idx=0,
        sample_token="token",
        scene_name="scene",
        scene_token="s",
        lidar_token="l",
        data_root=str(root),
        img_paths=[],
        img_timestamps=np.zeros(0, dtype=np.int64),
        ego2img=np.zeros((0, 4, 4)),
        pc_range=RANGE,
        voxel_size=VOXEL,
        class_names=CLASSES,
        ray_origins=np.array([[0.1, 0.1, 0.3], [1.0, -2.0, 0.3]]),
    )
    return OccSample(**{**values, **changes})


def labels(seed=0, share=0.2):
    """Return random labels with some of unknown state, and a mask of these."""
    rng = np.random.default_rng(seed)
    grid = np.where(rng.random(GRID) < 0.3, rng.integers(0, FREE, GRID), FREE).astype(np.uint8)
    return grid, rng.random(GRID) < share


def write(root, **arrays):
    path = root / "gts/scene/token/labels.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def scored(metric, sample, pred):
    """Return the result of a metric for one sample with a dense prediction."""
    coords = np.argwhere(pred != FREE)
    metric = METRICS.build(dict(metric))
    metric.dataset_meta = {"class_names": CLASSES}
    found = {"pred_coords": coords, "pred_labels": pred[tuple(coords.T)]}
    metric.process(None, [{**vars(sample), **found}])
    return metric.evaluate(1)


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("ignore_label", [255, 7, 0])
def test_unknown_voxels_are_marked(tmp_path, ignore_label, dtype):
    grid, unknown = labels()
    stored = grid.astype(dtype)
    stored[unknown] = ignore_label
    write(tmp_path, semantics=stored, mask_camera=unknown, mask_lidar=unknown)
    sample = LoadOcc3DLabels(ignore_label=ignore_label)(make_sample(tmp_path))
    expected = np.where(stored == ignore_label, UNKNOWN_LABEL, grid)
    np.testing.assert_array_equal(sample.voxel_semantics, expected)
    assert sample.voxel_semantics.dtype == np.uint8


def test_the_habitual_label_needs_no_setting(tmp_path):
    grid, _ = labels()
    grid[3, 4, 1] = 255
    write(tmp_path, semantics=grid)
    np.testing.assert_array_equal(LoadOcc3DLabels()(make_sample(tmp_path)).voxel_semantics, grid)
    with pytest.raises(UnknownClassError, match=r"has class 255, .* or set ignore_label"):
        LoadOcc3DLabels(ignore_label=None)(make_sample(tmp_path))
    grid[3, 4, 1] = 254
    write(tmp_path, semantics=grid)
    with pytest.raises(UnknownClassError, match="has class 254"):
        LoadOcc3DLabels()(make_sample(tmp_path))


def test_negative_ignore_label(tmp_path):
    grid, unknown = labels()
    write(tmp_path, semantics=np.where(unknown, -1, grid.astype(np.int16)))
    sample = LoadOcc3DLabels(ignore_label=-1)(make_sample(tmp_path))
    np.testing.assert_array_equal(sample.voxel_semantics == UNKNOWN_LABEL, unknown)


def test_coarser_voxels(tmp_path):
    """Known occupied voxels decide; otherwise one unknown voxel makes the larger one unknown."""
    rng = np.random.default_rng(1)
    fine = tuple(2 * size for size in GRID)
    grid = np.where(rng.random(fine) < 0.05, rng.integers(0, FREE, fine), FREE).astype(np.uint8)
    grid[rng.random(fine) < 0.05] = 255
    write(tmp_path, semantics=grid)
    got = LoadOcc3DLabels()(make_sample(tmp_path)).voxel_semantics
    assert got.shape == GRID
    counts = {FREE: 0, 255: 0}
    for index in np.ndindex(GRID):
        block = grid[tuple(slice(2 * i, 2 * i + 2) for i in index)]
        votes = np.bincount(block[block < FREE], minlength=FREE)
        rest = 255 if (block == 255).any() else FREE
        assert got[index] == (votes.argmax() if votes.any() else rest)
        counts[rest] += not votes.any()
    assert min(counts.values()) > 20


def test_open_occupancy(tmp_path):
    rows = np.array([[0, 1, 2, 1], [1, 1, 2, 255], [2, 3, 4, 0], [4, 5, 6, 2]])  # z, y, x, label
    path = tmp_path / "occupancy/scene_s/occupancy/l.npy"
    path.parent.mkdir(parents=True)
    np.save(path, rows)
    load = dict(label_range=RANGE, label_voxel_size=VOXEL)
    sample = LoadOccupancyLabels(**load)(make_sample(tmp_path))
    semantics, valid = sample.voxel_semantics, sample.mask_valid
    assert semantics[2, 1, 0] == 0 and semantics[6, 5, 4] == 1
    assert semantics[2, 1, 1] == UNKNOWN_LABEL and semantics[4, 3, 2] == FREE
    assert np.argwhere(~valid).tolist() == [[2, 1, 1], [4, 3, 2]]
    # Noise as unknown, instead of free as published models are trained.
    rows[1, 3] = 1
    np.save(path, rows)
    sample = LoadOccupancyLabels(ignore_label=0, **load)(make_sample(tmp_path))
    assert np.argwhere(sample.voxel_semantics == UNKNOWN_LABEL).tolist() == [[4, 3, 2]]
    assert np.argwhere(~sample.mask_valid).tolist() == [[4, 3, 2]]
    rows[1, 3] = 255
    np.save(path, rows)
    with pytest.raises(UnknownClassError, match="has class 255"):
        LoadOccupancyLabels(ignore_label=None, **load)(make_sample(tmp_path))


# ---------------------------------------------------------------- labels without masks


def test_semantics_alone(tmp_path):
    grid, _ = labels()
    write(tmp_path, semantics=grid)
    for cache_mb in (0, 8):
        load = LoadOcc3DLabels(label_cache_mb=cache_mb)
        for _ in range(2):
            sample = load(make_sample(tmp_path))
            np.testing.assert_array_equal(sample.voxel_semantics, grid)
            assert sample.mask_camera is None and sample.mask_lidar is None
    assert scored(dict(type="OccupancyMetric", mask=None), sample, grid)["occ3d/mIoU"] == 100
    assert scored(dict(type="RayIoUMetric"), sample, grid)["ray/RayIoU"] == 100
    for mask, key in (("camera", "camera"), ("lidar", "lidar"), ("both", "camera"), ("valid",) * 2):
        with pytest.raises(LoaderConfigError, match=rf"no 'mask_{key}' for the .*--masks none"):
            scored(dict(type="OccupancyMetric", mask=mask), sample, grid)


@pytest.mark.parametrize("kept", ["mask_camera", "mask_lidar"])
def test_one_mask_of_two_is_a_broken_file(tmp_path, kept):
    grid, mask = labels()
    write(tmp_path, semantics=grid, **{kept: mask})
    with pytest.raises(BadDataError, match=r"labels\.npz has no 'mask_"):
        LoadOcc3DLabels()(make_sample(tmp_path))


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize("mask", [None, "camera", "both"])
@pytest.mark.parametrize("ignore_label", [None, 255])
def test_unknown_voxels_count_in_no_voxel_score(mask, ignore_label):
    grid, unknown = labels()
    rng = np.random.default_rng(5)
    visible, lit = rng.random((2, *GRID)) < 0.5
    metric = dict(type="OccupancyMetric", mask=mask, ignore_label=ignore_label)
    truth = np.where(unknown, UNKNOWN_LABEL, grid).astype(np.uint8)
    results = []
    for seed in (1, 2):  # predictions that differ only in unknown voxels
        noise = np.random.default_rng(seed).integers(0, FREE + 1, GRID)
        pred = np.where(unknown, noise, np.roll(grid, 1, axis=0)).astype(np.uint8)
        sample = make_sample(voxel_semantics=truth, mask_camera=visible, mask_lidar=lit)
        results.append(scored(metric, sample, pred))
    assert results[0] == results[1]
    # By hand, from the known voxels.
    counted = ~unknown & {None: True, "camera": visible, "both": visible & lit}[mask]
    t, p = grid[counted], np.roll(grid, 1, axis=0)[counted]
    ious = [((t == k) & (p == k)).sum() / ((t == k) | (p == k)).sum() for k in range(FREE)]
    assert results[0]["occ3d/mIoU"] == round(100 * float(np.mean(ious)), 2)


@pytest.mark.parametrize("cached", [False, True])
def test_rays_that_end_in_unknown_voxels_are_left_out(tmp_path, cached):
    grid, unknown = labels(share=0.05)
    truth = np.where(unknown, UNKNOWN_LABEL, grid).astype(np.uint8)
    pred = np.roll(grid, 1, axis=1)
    origins = make_sample().ray_origins
    settings = (RANGE, VOXEL)
    cast = RayCache(tmp_path).cast if cached else None
    counts = sample_ray_counts(pred, truth, origins, *settings, FREE + 1, FREE, cast)
    # By hand, from the rays of both grids.
    true, true_m = (a[0] for a in cast_label_rays([truth], origins, *settings, FREE))
    found, found_m = (a[0] for a in cast_label_rays([pred], origins, *settings, FREE))
    assert (true == UNKNOWN_LABEL).sum() > 100
    kept = (true != FREE) & (true != UNKNOWN_LABEL)
    hit = kept & (true == found)
    for k in range(FREE):
        assert counts.gt[k] == (kept & (true == k)).sum()
        assert counts.pred[k] == (kept & (found == k)).sum()
        for h, limit in enumerate((1, 2, 4)):
            assert counts.hit[h, k] == (hit & (true == k) & (abs(true_m - found_m) < limit)).sum()


def test_unknown_voxels_are_not_drawn():
    grid, unknown = labels()
    truth = np.where(unknown, UNKNOWN_LABEL, grid).astype(np.uint8)
    drawn = without_unknown(truth, FREE)
    np.testing.assert_array_equal(drawn, np.where(unknown, FREE, grid))
    assert drawn.dtype == np.uint8


# ---------------------------------------------------------------- losses


def chamfer_by_hand(points, counted, centres, beta, factor):
    """Return the mean SmoothL1 to the nearest centre and to the nearest point."""

    def smooth(a, b):
        d = (a - b).abs()
        return torch.where(d < beta, 0.5 * d * d / beta, d - 0.5 * beta).sum(-1)

    distance = torch.cdist(points, centres)
    to_gt = smooth(points, centres[distance.argmin(1)])[counted].mean()
    to_pred = smooth(centres, points[distance.argmin(0)]).mean()
    return factor * (to_gt + to_pred)


def test_chamfer_leaves_out_what_is_not_counted():
    from models.losses import ChamferLoss, OccupiedPoints

    torch.manual_seed(0)
    points = (4 * torch.rand(40, 3, dtype=torch.float64)).requires_grad_()
    centres = 4 * torch.rand(30, 3, dtype=torch.float64)
    gt = OccupiedPoints(
        centres, torch.ones(30, dtype=torch.long), torch.zeros(30, dtype=torch.bool)
    )
    counted = torch.rand(40) < 0.6
    loss = ChamferLoss()([points], [gt], counted=[counted])
    expected = chamfer_by_hand(points.detach(), counted, centres, 0.2, 0.5)
    torch.testing.assert_close(loss.detach(), expected)
    (grad,) = torch.autograd.grad(loss, points)
    idle = ~counted & ~torch.isin(torch.arange(40), torch.cdist(centres, points).argmin(1))
    assert idle.any() and not grad[idle].any() and grad[counted].any()
    everyone = ChamferLoss()([points], [gt], counted=[torch.ones(40, dtype=torch.bool)])
    torch.testing.assert_close(everyone, ChamferLoss()([points], [gt]))
    assert ChamferLoss()([points], [gt], counted=[torch.zeros(40, dtype=torch.bool)]).isfinite()
    dense = ChamferLoss(density_aware=True)
    torch.testing.assert_close(
        dense([points], [gt], counted=[torch.ones(40, dtype=torch.bool)]), dense([points], [gt])
    )
