"""Labels of other classes and orders: OpenOcc v2, remapped labels, several data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.datasets.nuscenes_occ3d import OCC3D_CLASSES
from loaders.errors import LoaderConfigError, UnknownClassError
from loaders.sample import UNKNOWN_LABEL
from loaders.transforms.label_files import LabelMap
from scripts.runtime.config import load_config

# OpenOcc v2's order, 16 is free.
OPENOCC_V2 = [
    "car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian",
    "traffic_cone", "barrier", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade",
    "vegetation",
]  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "toy" / "opusv2-nano_toy.py"
VAL = "nuscenes_infos_val_mini_sweep.pkl"


def build(root, step, **changes):
    cfg = dict(
        type="NuScenesOcc3DDataset",
        data_root=str(root),
        ann_file=VAL,
        num_frames=1,
        test_mode=True,
        with_ray_origins=True,
        pipeline=[dict(type="LoadOcc3DLabels", **step)],
    )
    return DATASETS.build({**cfg, **changes})


@pytest.fixture
def root(mini, tmp_path):
    """Return the mini data set with OpenOcc v2 labels: Occ3D's in another order, and flow."""
    for path in mini.root.iterdir():
        (tmp_path / path.name).symlink_to(path)
    # Occ3D's label -> OpenOcc v2's; others have none there and become free.
    order = np.array([16, *(OPENOCC_V2.index(name) for name in OCC3D_CLASSES[1:]), 16], np.uint8)
    dataset = build(mini.root, {})
    for i in range(len(dataset)):
        sample = dataset.get_sample(i)
        folder = tmp_path / "openocc_v2" / sample.scene_name / sample.sample_token
        folder.mkdir(parents=True)
        semantics = order[mini.labels[sample.sample_token]["semantics"]]
        flow = np.zeros((*semantics.shape, 2), np.float16)
        np.savez_compressed(folder / "labels.npz", semantics=semantics, flow=flow)
    return tmp_path


def predictions(sample, empty_label):
    coords = np.argwhere(sample.voxel_semantics < empty_label)
    return {
        **vars(sample),
        "pred_coords": coords,
        "pred_labels": sample.voxel_semantics[tuple(coords.T)],
    }


def test_openocc_v2_by_configuration_alone(root, mini):
    dataset = build(root, dict(label_dir="openocc_v2"), class_names=OPENOCC_V2)
    assert dataset.metainfo["empty_label"] == 16
    occ3d = build(mini.root, {})
    evaluator = Evaluator([dict(type="RayIoUMetric"), dict(type="OccupancyMetric", mask=None)])
    evaluator.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        sample, theirs = dataset[i], occ3d[i].voxel_semantics
        assert sample.mask_camera is None
        for name in ("car", "barrier", "vegetation"):
            np.testing.assert_array_equal(
                sample.voxel_semantics == OPENOCC_V2.index(name),
                theirs == OCC3D_CLASSES.index(name),
            )
        evaluator.process([predictions(sample, 16)])
    scores = evaluator.evaluate(len(dataset))
    assert scores["ray/RayIoU"] == scores["occ3d/mIoU"] == 100


def test_a_map_brings_labels_into_the_order_of_the_config(root, mini):
    """With a dict or a list, by names or labels, Occ3D's labels result, except 'others'."""
    by_name = dict(enumerate([*OPENOCC_V2, "free"]))
    by_label = [OCC3D_CLASSES.index(name) for name in OPENOCC_V2] + [17]
    expected = build(mini.root, {})[1].voxel_semantics
    expected[expected == 0] = 17
    for label_map in (by_name, {str(key): name for key, name in by_name.items()}, by_label):
        step = dict(label_dir="openocc_v2", label_map=label_map)
        np.testing.assert_array_equal(build(root, step)[1].voxel_semantics, expected)
    step = dict(label_dir="openocc_v2", label_map=[None, *by_label[1:]])
    cars = expected == OCC3D_CLASSES.index("car")
    assert cars.any()
    np.testing.assert_array_equal(
        build(root, step)[1].voxel_semantics, np.where(cars, UNKNOWN_LABEL, expected)
    )


def test_data_sets_of_different_labels_are_concatenated(root, mini):
    """Concatenate Occ3D, OpenOcc v2 and OpenOccupancy's rows, all with three classes."""
    names = ["vehicle", "person", "rest"]

    def three(classes):
        group = {"car": "vehicle", "bus": "vehicle", "truck": "vehicle", "pedestrian": "person"}
        return [group.get(name, "rest") for name in classes] + ["free"]

    shared = dict(class_names=names, with_ray_origins=False)
    first = build(mini.root, dict(label_map=three(OCC3D_CLASSES)), **shared)
    step = dict(label_dir="openocc_v2", label_map=three(OPENOCC_V2))
    second = build(root, step, **shared)
    both = DATASETS.build(dict(type="ConcatDataset", datasets=[first, second]))
    assert len(both) == 2 * len(first)
    a, b = (both[i].voxel_semantics for i in (1, 1 + len(first)))
    assert set(np.unique(a)) == {0, 1, 2, 3}
    differ = build(mini.root, {})[1].voxel_semantics == 0  # 'others', which v2 does not have
    np.testing.assert_array_equal(a[~differ], b[~differ])
    rows = [None, *three(OCC3D_CLASSES[1:])]
    pipeline = [dict(type="LoadOccupancyLabels", label_map=rows)]
    dense = [dict(type="LoadOccupancyLabels")]
    change = dict(type="NuScenesOccupancyDataset", pc_range=None, **shared)
    got = build(mini.root, {}, pipeline=pipeline, **change)[0]
    plain = build(mini.root, {}, pipeline=dense, **{**change, "class_names": None})[0]
    table = LabelMap(rows).table(names)
    is_noise = ~plain.mask_valid
    np.testing.assert_array_equal(got.mask_valid, plain.mask_valid)
    np.testing.assert_array_equal(
        got.voxel_semantics[~is_noise], table[plain.voxel_semantics[~is_noise] + 1]
    )
    assert (got.voxel_semantics[is_noise] == UNKNOWN_LABEL).all()


@pytest.mark.parametrize(
    ("label_map", "error", "message"),
    [
        ({}, LoaderConfigError, "label_map is empty"),
        ({"a": 1}, LoaderConfigError, "label_map has 'a': 1"),
        ({0: 1.5}, LoaderConfigError, r"label_map has 0: 1\.5"),
        ({0: "cra"}, LoaderConfigError, "maps 0 to 'cra', which is neither a class"),
        ({0: 18}, LoaderConfigError, "maps 0 to 18, which is neither"),
        ({99: 1}, UnknownClassError, r"labels\.npz has the label \d+, which label_map does not"),
        ([0] * 5, UnknownClassError, r"has the label \d+, which label_map does not have"),
    ],
)
def test_wrong_maps(mini, label_map, error, message):
    with pytest.raises(error, match=message):
        build(mini.root, dict(label_map=label_map))[0]


def test_maps_in_config_files(tmp_path):
    """Labels can be keys, also after the config is dumped and read again."""
    path = tmp_path / "config.py"
    path.write_text(
        f"_base_ = {str(CONFIG)!r}\n"
        "pipeline = [dict(type='LoadOcc3DLabels', label_map={0: 'car', 1: None, 2: 'free'})]\n"
    )
    table = [4, UNKNOWN_LABEL, 17]
    for _ in range(2):
        cfg = load_config(path)
        (step,) = cfg.val_dataloader.dataset.pipeline
        assert LabelMap(step.label_map).table(OCC3D_CLASSES).tolist() == table
        path = tmp_path / "again.py"
        cfg.dump(path)
