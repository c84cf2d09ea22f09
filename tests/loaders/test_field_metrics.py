"""mIoU and RayIoU against an independent implementation in plain Python.

The expected values use nothing of the package. They follow the definitions of the benchmarks, voxel
by voxel and step by step. Legend: X Y Z voxels, R rays, K classes, free included.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from loaders.metrics.occupancy import occupancy_confusion, occupancy_scores
from loaders.metrics.ray_iou import cast_label_rays, ray_directions, ray_iou

CLASSES, FREE = 5, 4


def field_miou(preds, gts, masks) -> float:
    """Return the mean over semantic classes with a non-empty union, percent, two decimals."""
    hit, gt_count, pred_count = [0] * CLASSES, [0] * CLASSES, [0] * CLASSES
    for pred, gt, mask in zip(preds, gts, masks, strict=True):
        for index in np.ndindex(gt.shape):
            if mask[index]:
                gt_count[gt[index]] += 1
                pred_count[pred[index]] += 1
                hit[gt[index]] += pred[index] == gt[index]
    ious = []
    for k in range(CLASSES - 1):
        union = gt_count[k] + pred_count[k] - hit[k]
        if union > 0:
            ious.append(hit[k] / union)
    return round(sum(ious) / len(ious) * 100, 2)


def field_pitches() -> list[float]:
    pitches = [math.atan(k) - math.pi / 2 for k in range(1, 11)]
    while pitches[-1] < 0.21:
        pitches.append(pitches[-1] + (pitches[-1] - pitches[-2]))
    return pitches


def field_ray(grid, start, end) -> tuple[int, np.float32]:
    """Return class and exit time of a ray between two points, float32 [3], in voxels."""
    start, end = [float(x) for x in start], [float(x) for x in end]
    way = [b - a for a, b in zip(start, end, strict=True)]
    length = math.sqrt(way[0] * way[0] + way[1] * way[1] + way[2] * way[2])
    direction = [w / length for w in way]
    voxel = [int(x) for x in start]  # toward zero
    step = [1 if d >= 0 else -1 for d in direction]
    never = sys.float_info.max
    crossing, between = [never] * 3, [never] * 3
    for a in range(3):
        if direction[a] != 0:
            boundary = voxel[a] + (1 if step[a] > 0 else 0)
            crossing[a] = (boundary - start[a]) / direction[a]
            between[a] = step[a] / direction[a]
    label, time, was_inside = grid[0, 0, 0], np.float32(-1), False
    for _ in range(1001):
        inside = all(0 <= voxel[a] < grid.shape[a] for a in range(3))
        if was_inside and not inside:
            break
        earliest = min(crossing)
        axis = next(a for a in (2, 1, 0) if crossing[a] == earliest)  # z first, then y
        if inside:
            was_inside = True
            label, time = grid[tuple(voxel)], np.float32(crossing[axis])
            if label != FREE:
                break
        voxel[axis] += step[axis]
        crossing[axis] += between[axis]
    return int(label), time


def field_cast(grid, origin, directions, low, edge) -> tuple[np.ndarray, np.ndarray]:
    """Return classes and depths, metres, of the rays of one origin."""
    edge32 = np.float32(edge)
    low, size = np.asarray(low, np.float64), np.float64(edge32)
    start = ((origin - low) / size).astype(np.float32)
    labels, depths = [], []
    for direction in directions:
        end = ((origin + direction.astype(np.float64) - low) / size).astype(np.float32)
        label, time = field_ray(grid, start, end)
        labels.append(label)
        depths.append(time * edge32)
    return np.array(labels), np.array(depths, np.float32)


def field_ray_iou(preds, gts, origins, directions, low, edge) -> float:
    """Return RayIoU in percent."""
    hit = np.zeros((3, CLASSES - 1), int)
    gt_count, pred_count = np.zeros(CLASSES - 1, int), np.zeros(CLASSES - 1, int)
    for pred, gt, starts in zip(preds, gts, origins, strict=True):
        for origin in starts:
            seen = field_cast(pred, origin, directions, low, edge)
            true = field_cast(gt, origin, directions, low, edge)
            for p, p_depth, t, t_depth in zip(*seen, *true, strict=True):
                if t == FREE:
                    continue
                gt_count[t] += 1
                if p != FREE:
                    pred_count[p] += 1
                for h, limit in enumerate((1, 2, 4)):
                    hit[h, t] += p == t and abs(p_depth - t_depth) < limit
    ious = [
        [hit[h, k] / (gt_count[k] + pred_count[k] - hit[h, k]) for k in range(CLASSES - 1)
         if gt_count[k] + pred_count[k] > 0]
        for h in range(3)
    ]  # fmt: skip
    return 100 * sum(sum(row) / len(row) for row in ious) / 3


def random_grid(rng, shape, density, classes=CLASSES - 1) -> np.ndarray:
    occupied = rng.random(shape) < density
    return np.where(occupied, rng.integers(0, classes, shape), FREE).astype(np.uint8)


@pytest.mark.parametrize("seed", range(6))
def test_miou(seed: int) -> None:
    """Include classes that are only predicted, and classes that do not occur."""
    rng = np.random.default_rng(seed)
    preds = [random_grid(rng, (6, 5, 4), 0.5, 2 + seed % 3) for _ in range(2)]
    gts = [random_grid(rng, (6, 5, 4), 0.5, 1 + seed % 2) for _ in range(2)]
    masks = [rng.random((6, 5, 4)) < 0.6 for _ in range(2)]
    triples = zip(preds, gts, masks, strict=True)
    confusion = sum(occupancy_confusion(*triple, CLASSES) for triple in triples)
    assert occupancy_scores(np.asarray(confusion), FREE).miou == field_miou(preds, gts, masks)


def test_a_class_that_is_only_predicted_counts_as_0() -> None:
    gt = np.array([0, 0, FREE, FREE]).reshape(2, 2, 1)
    pred = np.array([0, 0, 1, FREE]).reshape(2, 2, 1)
    assert occupancy_scores(occupancy_confusion(pred, gt, None, CLASSES), FREE).miou == 50


def places(rng, kind: str, shape, number: int) -> np.ndarray:
    """Return ray origins, in voxels."""
    inside = rng.random((number, 3)) * shape
    if kind == "lattice":  # on corners, edges and faces of voxels, and in their middles
        return np.round(inside * 2) / 2
    if kind == "below":  # less than a voxel below lower bounds
        return np.where(rng.random((number, 3)) < 0.5, -rng.random((number, 3)), inside)
    if kind == "outside":
        return (rng.random((number, 3)) * 2 - 0.5) * shape
    return inside


@pytest.mark.parametrize("kind", ["inside", "lattice", "below", "outside"])
@pytest.mark.parametrize("edge", [0.4, 0.5])
def test_rays(kind: str, edge: float) -> None:
    """Class and depth of some hundred simulated LiDAR rays are bitwise equal."""
    rng = np.random.default_rng([len(kind), int(10 * edge)])
    columns = rng.permutation(len(ray_directions()))[:150]
    # Azimuths of a multiple of 45 degrees run along axes and diagonals.
    columns = np.unique([*columns, *range(0, len(ray_directions()), 45 * 11)])
    for density in (0.0, 0.02):
        shape = tuple(rng.integers(5, 40, 3))
        grid = random_grid(rng, shape, density)
        low = rng.choice([-4.0, -0.4, 0.0, 1.3], 3)
        origins = places(rng, kind, shape, 4) * edge + low
        labels, depths = cast_label_rays([grid], origins, (*low, 0, 0, 0), (edge,) * 3, FREE)
        for i, origin in enumerate(origins):
            rays = i * len(ray_directions()) + columns
            label, depth = field_cast(grid, origin, ray_directions()[columns], low, edge)
            np.testing.assert_array_equal(labels[0, rays], label)
            np.testing.assert_array_equal(depths[0, rays], depth)


def test_ray_iou(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    directions = ray_directions()[:: 14040 // 200]
    few = torch.from_numpy(np.array(directions))
    monkeypatch.setattr("loaders.metrics.ray_iou._directions", lambda: few)
    shape, low, edge = (24, 22, 9), (-5.0, -4.4, -1.0), 0.4
    gts = [random_grid(rng, shape, 0.05, 2) for _ in range(3)]
    preds = [np.where(rng.random(shape) < 0.7, gt, random_grid(rng, shape, 0.05)) for gt in gts]
    origins = [places(rng, kind, shape, 2) * edge + low for kind in ("lattice", "below", "outside")]
    expected = field_ray_iou(preds, gts, origins, directions, low, edge)
    scores = ray_iou(preds, gts, origins, (*low, 0, 0, 0), (edge,) * 3, CLASSES, FREE)
    assert scores.mean == pytest.approx(expected, rel=1e-12) and 1 < expected < 99


def test_directions() -> None:
    expected = [
        (math.cos(p) * math.cos(a), math.cos(p) * math.sin(a), math.sin(p))
        for p in field_pitches()
        for a in np.radians(np.arange(360))
    ]
    np.testing.assert_array_equal(ray_directions(), np.array(expected, np.float32))
