"""OpenOccupancy: labels in the lidar frame, noise, projection into the images, scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.errors import BadDataError, MissingDataError
from loaders.transforms.occupancy_labels import read_occupancy_rows

TRAIN = "nuscenes_infos_train_mini_sweep.pkl"
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "occ_metrics.npz"
GRID, FREE = (512, 512, 40), 16
LOW = np.array([-51.2, -51.2, -5.0])


def build(mini, flips=False, **changes):
    cfg = dict(
        type="NuScenesOccupancyDataset",
        data_root=str(mini.root),
        ann_file=TRAIN,
        num_frames=2,
        seed=0,
        pipeline=[
            dict(type="DrawImageAug", raw_hw=(90, 160), final_hw=(64, 160)),
            dict(type="LoadMultiViewImages", raw_hw=(90, 160)),
            dict(type="LoadOccupancyLabels"),
            *([dict(type="RandomFlipBEV")] if flips else []),
            dict(type="PackOccSample"),
        ],
    )
    return DATASETS.build({**cfg, **changes})


def dots_in_lidar(mini, mini_world, sample):
    """Return the dots [n, 3] in the key frame's lidar frame."""
    frames = mini.frames[sample.scene_name, "LIDAR_TOP"]
    key = [frame for frame in frames if frame.is_key]
    frame = key[mini.samples[sample.scene_name].index(sample.sample_token)]
    dots = mini_world["world_dots"](mini_world["scene_names"].index(sample.scene_name))
    return (dots - frame.translation) @ frame.rotation


def test_labels_are_where_the_lidar_sees_the_dots(mini, mini_world):
    dataset = build(mini, test_mode=True, with_ray_origins=True)
    assert dataset.metainfo["empty_label"] == FREE and len(dataset.metainfo["class_names"]) == 16
    for idx in range(len(dataset)):
        sample = dataset[idx]["data_samples"]
        semantics = sample.voxel_semantics.numpy()
        assert semantics.shape == GRID and semantics.dtype == np.uint8
        voxel = np.floor((dots_in_lidar(mini, mini_world, sample) - LOW) / 0.2).astype(int)
        np.testing.assert_array_equal(semantics[tuple(voxel.T)], np.arange(len(voxel)) % 16)
        assert (semantics != FREE).sum() == len(voxel)  # noise is free
        noise = np.argwhere(~sample.mask_valid.numpy())
        np.testing.assert_array_equal(noise, mini_world["noise_voxels"])


@pytest.mark.parametrize("test_mode", [True, False])
def test_voxels_project_onto_the_dots_in_every_frame(mini, mini_world, test_mode):
    """Project with occ2img = ego2img . inverse(ego2occ), with augmentation and BEV flips."""
    dataset = build(mini, flips=True, test_mode=test_mode)
    checked, flips = 0, set()
    for idx in range(len(dataset)):
        dataset.set_epoch(idx)
        sample = dataset[idx]["data_samples"]
        occupied = torch.nonzero(sample.voxel_semantics != FREE).numpy()
        centres = (occupied + 0.5) * 0.2 + LOW
        flips.add(tuple(np.sign(np.diag(sample.ego2occ.numpy() @ sample.lidar2ego))[:2]))
        occ2img = sample.ego2img.double() @ torch.linalg.inv(sample.ego2occ.double())
        dots = mini_world["world_dots"](mini_world["scene_names"].index(sample.scene_name))
        aug = sample.ida_mat
        for path, matrix in zip(sample.img_paths, occ2img.numpy(), strict=True):
            truth = mini.truth(path)
            raw, depth = mini_world["project"](dots, truth.rotation, truth.translation)
            inside = (depth > 4) & (raw >= 0).all(1) & (raw < [160, 90]).all(1)
            wanted = raw[inside] @ aug[:2, :2].T + aug[:2, 2]
            seen = np.c_[centres, np.ones(len(centres))] @ matrix.T
            seen = seen[seen[:, 2] > 3]
            pixels = seen[:, :2] / seen[:, 2:3]
            gap = np.linalg.norm(pixels[:, None] - wanted[None], axis=2).min(axis=0)
            # Half a voxel's diagonal, seen from the depth of the dot, up to 40 degrees off axis.
            assert (gap <= 110 * 0.18 * 1.3 / (depth[inside] - 0.2)).all()
            checked += len(wanted)
    assert checked > 300
    assert flips == {(1.0, 1.0)} if test_mode else len(flips) > 1


def test_a_part_of_the_grid_at_coarser_voxels(mini):
    full = build(mini, test_mode=True).get_sample(1)
    part = build(
        mini,
        test_mode=True,
        pc_range=(-19.2, -16.0, -2.6, 19.2, 16.0, 1.4),
        voxel_size=(0.4, 0.8, 0.4),
    )
    sample = part[1]["data_samples"]
    assert sample.voxel_semantics.shape == (96, 40, 10)
    whole = build(mini, test_mode=True)[1]["data_samples"].voxel_semantics.numpy()
    crop = whole[160:352, 176:336, 12:32].reshape(96, 2, 40, 4, 10, 2)
    occupied = (crop != FREE).any(axis=(1, 3, 5))
    assert occupied.sum() > 10
    np.testing.assert_array_equal(sample.voxel_semantics != FREE, torch.from_numpy(occupied))
    assert full.grid_shape == GRID


def test_ray_origins_are_in_the_lidar_frame(mini):
    sample = build(mini, test_mode=True, with_ray_origins=True).get_sample(1)
    # The LiDAR of the key frame itself, the second of its scene, is the origin.
    np.testing.assert_allclose(sample.ray_origins[1], 0, atol=1e-9)
    occ3d = build(mini, type="NuScenesOcc3DDataset", test_mode=True, with_ray_origins=True)
    in_ego = occ3d.get_sample(1).ray_origins
    turned = sample.ray_origins @ sample.lidar2ego[:3, :3].T + sample.lidar2ego[:3, 3]
    np.testing.assert_allclose(turned, in_ego, atol=1e-9)


def test_cache_hands_out_copies(mini):
    steps = [dict(type="LoadOccupancyLabels", label_cache_mb=64)]
    dataset = build(mini, test_mode=True, pipeline=steps)
    first = dataset[0].voxel_semantics
    first[:] = 3
    assert (dataset[0].voxel_semantics == FREE).mean() > 0.99


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 3), int), "holds no rows"),
        (np.zeros((3, 4)), "is float64, not integer"),
        (np.array([[40, 0, 0, 1]]), r"from \[40, 0, 0\] to \[40, 0, 0\], outside its grid"),
        (np.array([[0, 0, -1, 1]]), "outside its grid"),
        (np.array([[0, 0, 0, 17]]), "has class 17, but .* allow 0 to 16"),
        (np.array([[0, 0, 0, -1]]), "has class -1"),
        (np.array([{}], dtype=object), "is broken"),
    ],
)
def test_wrong_content(tmp_path, rows, message):
    np.save(tmp_path / "a.npy", rows, allow_pickle=True)
    with pytest.raises(BadDataError, match=rf"a\.npy.*{message}"):
        read_occupancy_rows(str(tmp_path / "a.npy"), GRID, 16)


@pytest.mark.parametrize("kept", [0, 5, 100, -8])
def test_truncated(tmp_path, kept):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((100, 4), int))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadDataError, match=r"a\.npy is broken: extract"):
        read_occupancy_rows(str(path), GRID, 16)


def test_missing_and_empty(tmp_path):
    with pytest.raises(MissingDataError, match=r"none\.npy does not exist: extract"):
        read_occupancy_rows(str(tmp_path / "none.npy"), GRID, 16)
    np.save(tmp_path / "a.npy", np.zeros((0, 4), int))
    assert len(read_occupancy_rows(str(tmp_path / "a.npy"), GRID, 16)) == 0


def test_scores_of_the_reference_through_the_evaluator():
    """The reference omits classes that are only predicted; they count as 0 (DATA.md)."""
    with np.load(GOLDEN) as golden:
        per_class = golden["openocc/per_class"][:FREE]
        predicted = {int(label) for i in range(2) for label in np.unique(golden[f"oo_pred/{i}"])}
        counted = [not np.isnan(score) or k in predicted for k, score in enumerate(per_class)]
        expected = float(np.nansum(per_class) / sum(counted))
        evaluator = Evaluator([dict(type="OccupancyMetric", mask="valid", prefix="openocc")])
        evaluator.dataset_meta = {"class_names": [f"c{i}" for i in range(16)]}
        for i in range(2):
            pred = golden[f"oo_pred/{i}"]
            coords = np.argwhere(pred != FREE)
            sample = BaseDataElement(
                metainfo=dict(sample_idx=i),
                pred_coords=torch.from_numpy(coords),
                pred_labels=torch.from_numpy(pred[tuple(coords.T)].astype(np.int64)),
                voxel_semantics=torch.from_numpy(golden[f"oo_gt/{i}"].astype(np.uint8)),
                mask_valid=torch.from_numpy(golden[f"oo_mask/{i}"].astype(bool)),
            )
            evaluator.process(data_samples=[sample], data_batch=None)
        result = evaluator.evaluate(2)
    assert result["openocc/IoU"] == 60.95
    assert result["openocc/mIoU"] == pytest.approx(expected, abs=0.006) != 46.07
