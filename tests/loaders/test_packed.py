"""Packed data roots: files of the packer, and data sets that read them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.errors import BadDataError
from loaders.packed import INDEX_NAME, extreme_augs, read_packed_index, smallest_stored_size
from loaders.transforms.geometry import aug_for_size, draw_image_aug
from loaders.transforms.images import read_whole_image
from loaders.transforms.labels import pack_occ3d_labels, read_occ3d_labels
from loaders.transforms.occupancy_labels import (
    LoadOccupancyLabels,
    pack_occupancy_rows,
    read_occupancy_rows,
)
from models.ops import resize_window
from scripts.data_checks import checker as check_data
from scripts.packing import writer
from scripts.packing.command import main

RAW_HW, FINAL_HW, RANGE = (90, 160), (32, 96), (0.62, 0.75)
CONFIG = """
custom_imports = dict(imports=['loaders.register'], allow_failed_imports=False)
data_root = '{root}'
pipeline = [
    dict(type='DrawImageAug', raw_hw=(90, 160), final_hw=(32, 96), resize_range={range}),
    dict(type='LoadMultiViewImages', raw_hw=(90, 160)),
    dict(type='LoadOcc3DLabels'),
    dict(type='LoadLidarSweeps'),
    dict(type='RandomFlipBEV'),
    dict(type='PackOccSample')]
dataset = dict(
    type='NuScenesOcc3DDataset', version='v1.0-mini', num_frames=3, use_lidar=True, seed=0,
    pipeline=pipeline)
train_dataloader = dict(dataset=dict(ann_file='nuscenes_infos_train_mini_sweep.pkl', **dataset))
val_dataloader = dict(dataset=dict(
    ann_file='nuscenes_infos_val_mini_sweep.pkl', test_mode=True, **dataset))
"""


def write_config(folder: Path, root: Path, resize_range: Any = RANGE) -> str:
    path = folder / "config.py"
    path.write_text(CONFIG.format(root=root, range=resize_range))
    return str(path)


def data_set(root: Path, resize_range: Any = RANGE, part: str = "train", **changes: Any) -> Any:
    pipeline = [
        dict(type="DrawImageAug", raw_hw=RAW_HW, final_hw=FINAL_HW, resize_range=resize_range),
        dict(type="LoadMultiViewImages", raw_hw=RAW_HW, **changes.pop("load", {})),
        dict(type="LoadOcc3DLabels"),
        dict(type="LoadLidarSweeps"),
        dict(type="RandomFlipBEV"),
        dict(type="PackOccSample"),
    ]
    values = dict(
        type="NuScenesOcc3DDataset",
        data_root=str(root),
        ann_file=f"nuscenes_infos_{part}_mini_sweep.pkl",
        num_frames=3,
        use_lidar=True,
        seed=0,
        pipeline=pipeline,
        test_mode=part == "val",
    )
    return DATASETS.build({**values, **changes})


@pytest.fixture(scope="module")
def packed(mini: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    out = folder / "root"
    config = write_config(folder, mini.root)
    assert main(["--config", config, "--out", str(out), "--workers", "0", "--quality", "100"]) == 0
    return out


def differences(plain: Any, other: Any) -> list[float]:
    found = []
    for data_set in (plain, other):
        data_set.set_epoch(3)
    for index in range(len(plain)):
        a, b = (each[index] for each in (plain, other))
        images = [item["inputs"]["img"].float() for item in (a, b)]
        found.append(float((images[0] - images[1]).abs().mean()))
        assert images[0].std() > 5
        # Everything but the images is the same to the bit, the random draws with it.
        assert (a["inputs"]["points"] == b["inputs"]["points"]).all()
        for name in ("ego2img", "ego2occ", "voxel_semantics", "mask_camera", "mask_lidar"):
            assert (a["data_samples"].get(name) == b["data_samples"].get(name)).all(), name
        assert a["data_samples"].get("seed") == b["data_samples"].get("seed")
    return found


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_samples_are_those_of_the_source(mini: Any, packed: Path, part: str, mode: str) -> None:
    load = dict(image_mode=mode, image_cache_mb=0)
    plain, small = (data_set(root, part=part, load=load) for root in (mini.root, packed))
    assert small.packed is not None and plain.packed is None
    assert max(differences(plain, small)) < 2.0


def test_files_are_small_and_the_rest_is_linked(mini: Any, packed: Path) -> None:
    path = next((packed / "samples" / "CAM_BACK").iterdir())
    with Image.open(path) as image:
        # 0.75 of 160 columns; the lowest rows that a crop of 32 reaches at 0.62, and two more.
        assert image.size[0] == 120 and 68 * 32 / 0.62 / 90 < image.size[1] < 68
    assert (packed / "samples" / "LIDAR_TOP").is_symlink()
    assert (packed / "occupancy").is_symlink() and (packed / "v1.0-mini").is_symlink()
    assert not (packed / "gts").is_symlink() and not list((packed / "gts").rglob(".*"))
    index = json.loads((packed / INDEX_NAME).read_text())
    assert index["source"] == str(mini.root.resolve()) and index["quality"] == 100
    images = [p for p in packed.rglob("*.jpg") if not p.is_symlink()]
    assert index["images"] == len(images) and index["labels"] == 9


def test_rows_of_voxels_are_packed_too(mini: Any, tmp_path: Path) -> None:
    config, out = write_config(tmp_path, mini.root), tmp_path / "root"
    text = Path(config).read_text()
    text = text.replace("LoadOcc3DLabels", "LoadOccupancyLabels")
    Path(config).write_text(text.replace("NuScenesOcc3DDataset", "NuScenesOccupancyDataset"))
    assert main(["--config", config, "--out", str(out), "--workers", "0"]) == 0
    load = LoadOccupancyLabels()
    plain, small = (
        data_set(root, type="NuScenesOccupancyDataset", use_lidar=False, pipeline=[])
        for root in (mini.root, out)
    )
    for index in range(len(plain)):
        a, b = (load(each.get_sample(index)) for each in (plain, small))
        assert load.label_path(b).startswith(str(out)) and (a.voxel_semantics != 16).any()
        np.testing.assert_array_equal(a.voxel_semantics, b.voxel_semantics)
        np.testing.assert_array_equal(a.mask_valid, b.mask_valid)
    files = [path for path in (out / "occupancy").rglob("*.npy") if not path.is_symlink()]
    assert len(files) == 9 and (out / "gts").is_symlink()


def test_a_packed_root_passes_the_checks(packed: Path, tmp_path: Path, capsys: Any) -> None:
    config = write_config(tmp_path, packed)
    assert check_data.main([config, "--full", "--workers", "0"]) == 0
    assert "nothing wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("resize_range", "sentence"),
    [
        ((0.62, 0.8), r"packed at 0\.750 of their size, but the config enlarges them to 0\.800"),
        (
            (0.4, 0.75),
            r"packed without their upper \d+%, but the crops of the config begin at \d+%",
        ),
    ],
)
def test_larger_augmentation_is_refused(packed: Path, resize_range: Any, sentence: str) -> None:
    with pytest.raises(BadDataError, match=sentence) as caught:
        data_set(packed, resize_range)
    assert "set data_root to" in str(caught.value)
    data_set(packed, resize_range, "val")  # evaluation does not augment


def test_other_raw_size_is_refused(packed: Path) -> None:
    other = dict(type="DrawImageAug", raw_hw=(180, 320), final_hw=(32, 96))
    with pytest.raises(BadDataError, match=r"packed from 90 x 160 pixels, but .* is 180"):
        data_set(packed, pipeline=[other])


def test_smaller_augmentation_is_accepted(mini: Any, packed: Path) -> None:
    plain, small = (data_set(root, (0.65, 0.7)) for root in (mini.root, packed))
    assert max(differences(plain, small)) < 2.0


def test_interrupted_packing_goes_on(mini: Any, tmp_path: Path, monkeypatch: Any, capsys: Any):
    out, config = tmp_path / "root", write_config(tmp_path, mini.root)
    command = ["--config", config, "--out", str(out)]
    calls = []

    def stops(*arguments: Any) -> bytes:
        calls.append(arguments)
        if len(calls) > 40:
            raise KeyboardInterrupt
        return writer.encode_jpeg(writer.shrink_image(arguments[0], arguments[1]), 95)

    with monkeypatch.context() as patch:
        patch.setattr(
            writer, "pack_image", lambda path, size, quality: stops(cv2.imread(str(path)), size)
        )
        assert main([*command, "--workers", "0"]) != 0
    assert "run the same command again" in "".join(capsys.readouterr())
    assert len(list(out.rglob("*.jpg"))) == 40
    with pytest.raises(BadDataError, match=r"not all packed: run scripts/pack_images\.py again"):
        data_set(out)
    kept = next(out.rglob("*.jpg"))
    before = kept.stat().st_mtime_ns
    assert main([*command, "--workers", "2"]) == 0
    assert "40 existed" in capsys.readouterr().out
    assert kept.stat().st_mtime_ns == before
    data_set(out)
    # With other options the files are another's.
    assert main([*command, "--quality", "80"]) != 0
    assert "packed in another way (quality differ)" in "".join(capsys.readouterr())


def test_wrong_folders_are_refused(mini: Any, packed: Path, tmp_path: Path, capsys: Any) -> None:
    config = write_config(tmp_path, mini.root)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").touch()
    for out, sentence in (
        (tmp_path / "full", "is not empty and was not made by this command"),
        (mini.root / "packed", "lies in the data root"),
    ):
        assert main(["--config", config, "--out", str(out)]) != 0
        assert sentence in "".join(capsys.readouterr())
    assert not (mini.root / "packed").exists()
    again = write_config(tmp_path, packed)
    assert main(["--config", again, "--out", str(tmp_path / "new")]) != 0
    assert "is packed already: set data_root to" in "".join(capsys.readouterr())


def test_estimate_writes_nothing(mini: Any, tmp_path: Path, capsys: Any) -> None:
    out, config = tmp_path / "root", write_config(tmp_path, mini.root)
    assert main(["--config", config, "--out", str(out), "--estimate"]) == 0
    assert "9 label files: about" in capsys.readouterr().out and not out.exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 1, "is_complete": true, "source": "a", "sizes": [{"raw_hw": [1, 2]}]}',
        '{"format": 1, "is_complete": true, "source": "a", "sizes":'
        ' [{"raw_hw": [9, 9], "full_hw": [10, 9], "top": 0}]}',
        '{"format": 1, "is_complete": true, "source": "a", "sizes":'
        ' [{"raw_hw": [9, 9], "full_hw": [9, 9], "top": 9}]}',
        '{"format": 1, "is_complete": true, "source": "a", "sizes":'
        ' [{"raw_hw": [9, 9], "full_hw": [9.5, 9], "top": 0}]}',
    ],
)
def test_broken_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX_NAME).write_text(content)
    with pytest.raises(BadDataError, match="index of packed images"):
        read_packed_index(tmp_path)


@pytest.mark.parametrize("image_hw", [(900, 1600), (700, 1000)])
def test_no_draw_reaches_further_than_is_stored(image_hw: tuple[int, int]) -> None:
    raw_hw, final_hw, resize_range = (900, 1600), (256, 704), (0.38, 0.55)
    augs = extreme_augs(raw_hw, final_hw, resize_range, image_hw)
    size = smallest_stored_size(augs, image_hw)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        aug = draw_image_aug(rng, raw_hw, final_hw, resize_range)
        aug = aug_for_size(aug, raw_hw, image_hw)
        first, last = resize_window(size.full_hw[0], aug.resize_dims[1], aug.crop[1], final_hw[0])
        assert size.top <= first < last <= size.full_hw[0]
        assert aug.resize_dims[0] <= size.full_hw[1] and aug.resize_dims[1] <= size.full_hw[0]
    if image_hw == raw_hw:
        assert size.stored_hw == (375, 880)


def test_whole_image_for_pictures(mini: Any, packed: Path) -> None:
    index = read_packed_index(packed)
    assert index is not None
    name = next((packed / "samples" / "CAM_FRONT").iterdir()).relative_to(packed)
    whole = read_whole_image(str(packed / name), index).astype(int)
    raw = cv2.imread(str(mini.root / name)).astype(int)
    lost = round(index.sizes[0].top / index.sizes[0].full_hw[0] * RAW_HW[0])
    assert whole.shape == raw.shape and not whole[: lost - 1].any()
    assert np.abs(whole - raw)[lost + 1 :].mean() < 4


class TestLabels:
    @pytest.mark.parametrize("masks", [(), ("mask_camera", "mask_lidar")])
    def test_round_trip(self, tmp_path: Path, masks: tuple[str, ...]) -> None:
        rng = np.random.default_rng(0)
        shape = (20, 21, 5)  # bits that fill no whole byte
        semantics = np.where(rng.random(shape) < 0.1, rng.integers(0, 18, shape), 17)
        semantics[0, 0] = 255
        arrays = {name: (rng.random(shape) < 0.5).astype(np.uint8) for name in masks}
        plain, packed = tmp_path / "labels.npz", tmp_path / "packed.npz"
        np.savez_compressed(plain, semantics=semantics.astype(np.uint8), **arrays)
        content = pack_occ3d_labels(str(plain))
        assert content is not None
        np.savez(packed, **content)
        expected, found = (read_occ3d_labels(str(p), shape, 18) for p in (plain, packed))
        assert [a is None for a in found] == [False, not masks, not masks]
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a is None or a.dtype == b.dtype

    def test_labels_of_more_bits_are_left(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", semantics=np.full((2, 2, 2), 300))
        assert pack_occ3d_labels(str(tmp_path / "a.npz")) is None

    @pytest.mark.parametrize(
        "change",
        [
            {"grid": np.array([4, 4, 2])},
            {"grid": np.array([4, 4, 3, 17])},
            {"grid": np.array([4, -4, 2, 17])},
            {"grid": np.array([2**20, 2**20, 2, 17])},
            {"grid": np.array([4, 4, 2, 999])},
            {"other": np.zeros(3, np.uint8)},
            {"other": np.zeros(4, np.int64)},
            {"labels": np.zeros(5, np.uint8)},
            {"mask_camera": np.zeros(3, np.uint8)},
            {"mask_lidar": None},
        ],
    )
    def test_damage_is_refused(self, tmp_path: Path, change: dict[str, Any]) -> None:
        source, path = tmp_path / "a.npz", tmp_path / "b.npz"
        semantics = np.full((4, 4, 2), 17, np.uint8)
        semantics[0] = 3
        mask = np.ones((4, 4, 2), bool)
        np.savez(source, semantics=semantics, mask_camera=mask, mask_lidar=mask)
        content = pack_occ3d_labels(str(source))
        assert content is not None
        arrays = {k: v for k, v in {**content, **change}.items() if v is not None}
        np.savez(path, **arrays)
        with pytest.raises(BadDataError, match=os.fspath(path)):
            read_occ3d_labels(str(path), (4, 4, 2), 18)


class TestRows:
    """Rows [n, 4] of three indices and a label."""

    @staticmethod
    def pack(folder: Path, rows: Any, **changes: Any) -> tuple[str, dict[str, Any]]:
        source, path = folder / "a.npy", folder / "b.npy"
        np.save(source, rows)
        content = pack_occupancy_rows(str(source))
        assert content is not None
        with path.open("wb") as file:  # an archive under the name of an array, as in a packed root
            np.savez(file, **{k: v for k, v in {**content, **changes}.items() if v is not None})
        return str(path), content

    @pytest.mark.parametrize("kind", ["dense", "sparse", "unordered", "repeated", "empty"])
    @pytest.mark.parametrize("order", ["zyx", "xyz"])
    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
    def test_round_trip(self, tmp_path: Path, kind: str, order: str, dtype: Any) -> None:
        rng = np.random.default_rng(0)
        number = dict(dense=600, sparse=20, unordered=300, repeated=300, empty=0)[kind]
        index = np.argwhere(rng.permutation(11 * 13 * 9).reshape(11, 13, 9) < number)
        rows = np.c_[index, rng.integers(0, 17, number)].astype(dtype)
        if kind == "unordered":
            rows = rng.permutation(rows)
        if kind == "repeated":
            rows = rows.repeat(2, axis=0)
        path, content = self.pack(tmp_path, rows)
        assert ("other" in content) == (kind == "dense")
        assert sum(array.nbytes for array in content.values()) <= 24 + 5 * len(rows)
        grid = (13, 13, 13)
        expected, found = (
            read_occupancy_rows(name, grid, 16, column_order=order)
            for name in (str(tmp_path / "a.npy"), path)
        )
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize(
        "row", [(0, -1, 0, 3), (0, 0, 0, 256), (0, 0, 0, -1), (2**14,) * 3 + (1,)]
    )
    def test_other_rows_are_left(self, tmp_path: Path, row: Any) -> None:
        np.save(tmp_path / "a.npy", np.array([row], dtype=np.int64))
        assert pack_occupancy_rows(str(tmp_path / "a.npy")) is None

    @pytest.mark.parametrize(
        "change",
        [
            {"sides": np.array([4, 4])},
            {"sides": np.array([4, -4, -2])},
            {"sides": np.array([2**20, 2**20, 2])},
            {"sides": np.array([1, 1, 1])},
            {"labels": np.zeros(5, np.uint8)},
            {"labels": np.zeros(2, np.int64)},
            {"labels": None},
            {"places": np.zeros((2, 1), np.uint32)},
            {"places": np.array([0, 1000])},
            {"places": np.array([0, -1])},
            {"places": np.array([0.0, 1.0])},
            {"places": None},
            {"places": None, "other": np.zeros(99, np.uint8)},
        ],
    )
    def test_damage_is_refused(self, tmp_path: Path, change: dict[str, Any]) -> None:
        rows = np.array([(3, 3, 1, 2), (0, 0, 0, 1)])
        path, _ = self.pack(tmp_path, rows, **change)
        with pytest.raises(BadDataError, match=os.fspath(path)):
            read_occupancy_rows(path, (9, 9, 9), 16)
