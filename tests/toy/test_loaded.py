"""Loaded toy data agree with the nuScenes devkit: boxes in history frames, LiDAR points, labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.utils.data_classes import Box
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.datasets.nuscenes_occ3d import NuScenesOcc3DDataset
from loaders.datasets.nuscenes_occupancy import NuScenesOccupancyDataset
from loaders.datasets.occupancy_dataset import OccupancyDataset
from loaders.sample import OccSample
from scripts.sweep_infos.generator import command_parser
from scripts.sweep_infos.generator import write_info_files as gen_sweep_info
from scripts.toy_nuscenes.classes import CATEGORY_TO_OCC

RAW_HW, FINAL_HW = (54, 96), (32, 80)


@pytest.fixture(scope="module")
def nusc(small_root: Path) -> NuScenes:
    return NuScenes(version="v1.0-mini", dataroot=str(small_root), verbose=False)


@pytest.fixture(scope="module")
def info_folder(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("infos")
    arguments = ["--data-root", str(small_root), "--version", "v1.0-mini", "--no-progress"]
    gen_sweep_info(command_parser().parse_args([*arguments, "--out-dir", str(folder)]))
    return folder


def build(
    kind: type[OccupancyDataset], root: Path, infos: Path, part: str, *, training: bool
) -> OccupancyDataset:
    labels = "LoadOcc3DLabels" if kind is NuScenesOcc3DDataset else "LoadOccupancyLabels"
    draw = dict(type="DrawImageAug", raw_hw=RAW_HW, final_hw=FINAL_HW, resize_range=(0.85, 1.0))
    steps = [draw, dict(type=labels), dict(type="LoadLidarSweeps"), dict(type="RandomFlipBEV")]
    return kind(
        data_root=str(root),
        ann_file=str(infos / f"nuscenes_infos_{part}_mini_sweep.pkl"),
        pipeline=steps,
        num_frames=4,
        test_mode=not training,
        use_lidar=True,
        train_interval=(1, 3),
        test_interval=2,
        seed=0,
    )


def image_record(nusc: NuScenes, path: str) -> dict:
    name = "/".join(Path(path).parts[-3:])
    return next(record for record in nusc.sample_data if record["filename"] == name)


def still_boxes(nusc: NuScenes, sample_token: str) -> list[tuple[str, Box]]:
    """Return category and box, global frame, of annotated static objects."""
    out = []
    for token in nusc.get("sample", sample_token)["anns"]:
        record = nusc.get("sample_annotation", token)
        other = record["next"] or record["prev"]
        if other:
            there = nusc.get("sample_annotation", other)["translation"]
            if np.linalg.norm(np.subtract(record["translation"], there)) < 0.01:
                out.append((record["category_name"], nusc.get_box(token)))
    return out


def occ_from_global(nusc: NuScenes, sample: OccSample) -> np.ndarray:
    """Return the matrix [4, 4] from global points to the grid's frame by the devkit's poses."""
    lidar = nusc.get("sample_data", sample.lidar_token)
    pose = nusc.get("ego_pose", lidar["ego_pose_token"])
    ego2global = np.eye(4)
    ego2global[:3, :3] = Quaternion(pose["rotation"]).rotation_matrix
    ego2global[:3, 3] = pose["translation"]
    return sample.ego2occ @ np.linalg.inv(ego2global)


def devkit_pixels(nusc: NuScenes, path: str, box: Box) -> tuple[np.ndarray, float]:
    """Return pixel and depth of a global box's centre in an image, as the devkit does."""
    record = image_record(nusc, path)
    pose = nusc.get("ego_pose", record["ego_pose_token"])
    mount = nusc.get("calibrated_sensor", record["calibrated_sensor_token"])
    box = box.copy()
    for frame in (pose, mount):
        box.translate(-np.array(frame["translation"]))
        box.rotate(Quaternion(frame["rotation"]).inverse)
    u, v, depth = np.array(mount["camera_intrinsic"]) @ box.center
    return np.array([u, v]) / depth, float(depth)


KINDS = [NuScenesOcc3DDataset, NuScenesOccupancyDataset]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_box_centres_project_alike_in_every_frame(
    nusc: NuScenes, small_root: Path, info_folder: Path, kind: type, training: bool
) -> None:
    checked, times = 0, set()
    for part in ("train", "val"):
        dataset = build(kind, small_root, info_folder, part, training=training)
        dataset.set_epoch(0)
        for index in range(len(dataset)):
            sample = dataset[index]
            to_occ = occ_from_global(nusc, sample)
            aug = sample.image_aug
            assert aug is not None
            occ2img = sample.ego2img @ np.linalg.inv(sample.ego2occ)
            for path, matrix, time in zip(
                sample.img_paths, occ2img, sample.img_timestamps, strict=True
            ):
                for _, box in still_boxes(nusc, sample.sample_token):
                    wanted, depth = devkit_pixels(nusc, path, box)
                    if depth < 1 or not (0 < wanted[0] < RAW_HW[1] and 0 < wanted[1] < RAW_HW[0]):
                        continue
                    wanted = wanted * aug.resize - aug.crop[:2]
                    if aug.flip:
                        wanted[0] = FINAL_HW[1] - wanted[0]
                    u, v, w, _ = matrix @ to_occ @ [*box.center, 1]
                    assert np.allclose([u / w, v / w], wanted, atol=1e-2)
                    checked += 1
                    times.add(int(time))
    assert checked > 300 and len(times) > 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_points_of_every_sweep_lie_in_the_boxes_of_things(
    nusc: NuScenes, small_root: Path, info_folder: Path, kind: type, training: bool
) -> None:
    """Their number equals the points of the sweep's file in the box, by the devkit's poses."""
    checked = 0
    for part in ("train", "val"):
        dataset = build(kind, small_root, info_folder, part, training=training)
        dataset.set_epoch(1)
        for index in range(len(dataset)):
            sample = dataset[index]
            assert sample.points is not None and sample.lidar is not None
            points = sample.points
            in_global = np.linalg.inv(occ_from_global(nusc, sample))
            points_global = points[:, :3] @ in_global[:3, :3].T + in_global[:3, 3]
            paths = [nusc.get("sample_data", sample.lidar_token)["filename"]]
            while nusc.get("sample_data", _token(nusc, paths[-1]))["prev"] and len(paths) < 10:
                token = nusc.get("sample_data", _token(nusc, paths[-1]))["prev"]
                paths.append(nusc.get("sample_data", token)["filename"])
            assert [Path(path).name for path in sample.lidar.paths] == [Path(p).name for p in paths]
            copies = 10 if len(paths) == 1 else 1  # without sweeps the key frame stands in
            lags = np.unique(points[:, 4])
            assert len(lags) == len(paths)
            for lag, path in zip(lags, paths, strict=True):
                mine = points_global[points[:, 4] == lag]
                for _, box in still_boxes(nusc, sample.sample_token):
                    box.wlh = box.wlh + 0.02  # float32 at the surface
                    expected = _count_in_file(nusc, path, box) * copies
                    assert abs(int(points_in_box(box, mine.T).sum()) - expected) <= 2 * copies
                    checked += expected
    assert checked > 200


def _token(nusc: NuScenes, filename: str) -> str:
    return next(r["token"] for r in nusc.sample_data if r["filename"] == filename)


def _count_in_file(nusc: NuScenes, filename: str, box: Box) -> int:
    record = nusc.get("sample_data", _token(nusc, filename))
    points = np.fromfile(Path(nusc.dataroot) / filename, np.float32).reshape(-1, 5)[:, :3]
    box = box.copy()
    for frame in (
        nusc.get("ego_pose", record["ego_pose_token"]),
        nusc.get("calibrated_sensor", record["calibrated_sensor_token"]),
    ):
        box.translate(-np.array(frame["translation"]))
        box.rotate(Quaternion(frame["rotation"]).inverse)
    return int(points_in_box(box, points.T).sum())


@pytest.mark.parametrize("training", [False, True])
def test_both_label_sets_agree_with_each_other_and_the_boxes(
    nusc: NuScenes, small_root: Path, info_folder: Path, training: bool
) -> None:
    """Each in its own frame, with independent flips."""
    seen, same, boxes = 0, 0, 0
    for part in ("train", "val"):
        sets = [build(kind, small_root, info_folder, part, training=training) for kind in KINDS]
        for epoch, dataset in enumerate(sets):
            dataset.set_epoch(epoch)
        for index in range(len(sets[0])):
            coarse, fine = sets[0][index], sets[1][index]
            assert coarse.voxel_semantics is not None and fine.voxel_semantics is not None
            occupied = np.argwhere(fine.voxel_semantics != len(fine.class_names))
            centres = (occupied + 0.5) * 0.2 + np.array(fine.pc_range[:3])
            fine2coarse = coarse.ego2occ @ np.linalg.inv(fine.ego2occ)
            moved = centres @ fine2coarse[:3, :3].T + fine2coarse[:3, 3]
            voxel = np.floor((moved - np.array(coarse.pc_range[:3])) / 0.4).astype(int)
            inside = ((voxel >= 0) & (voxel < coarse.grid_shape)).all(1)
            there = coarse.voxel_semantics[tuple(voxel[inside].T)]
            here = fine.voxel_semantics[tuple(occupied[inside].T)] + 1  # Occ3D also has 'others'
            both = there != len(coarse.class_names)
            seen, same = seen + both.sum(), same + (there == here)[both].sum()
            assert both.mean() > 0.8
            to_occ = occ_from_global(nusc, fine)
            in_global = np.linalg.inv(to_occ)
            placed = centres @ in_global[:3, :3].T + in_global[:3, 3]
            labels = fine.voxel_semantics[tuple(occupied.T)] + 1
            for category, box in still_boxes(nusc, fine.sample_token):
                if np.linalg.norm((to_occ @ [*box.center, 1])[:2]) > 20:
                    continue
                box.wlh = box.wlh + 0.25
                mine = labels[points_in_box(box, placed.T)]
                expected = int(CATEGORY_TO_OCC[category])
                if expected:
                    assert expected in mine
                    boxes += 1
    assert same / seen > 0.9 and boxes > 20
