"""Images of a different size per camera: projections of scene points stay correct."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image

import loaders.register  # noqa: F401 - enters the parts into the registries
from loaders.errors import BadDataError, LoaderConfigError
from loaders.info_io import load_infos, save_infos
from loaders.transforms import geometry

RAW_HW, OTHER_HW = (90, 160), (180, 240)
FACTOR = 1.5  # in x; the images are squeezed in y by another one


@pytest.fixture
def root(mini, tmp_path):
    """Return the mini data set with CAM_BACK at 240 x 180 and a matching calibration."""
    content = load_infos(mini.root / "nuscenes_infos_val_mini_sweep.pkl")
    for name in ("samples", "sweeps"):
        (tmp_path / name).mkdir()
        for folder in (mini.root / name).iterdir():
            target = tmp_path / name / folder.name
            if folder.name != "CAM_BACK":
                target.symlink_to(folder)
                continue
            target.mkdir()
            for path in folder.iterdir():
                Image.open(path).resize(OTHER_HW[::-1]).save(target / path.name, quality=98)
    scale = np.diag([OTHER_HW[1] / RAW_HW[1], OTHER_HW[0] / RAW_HW[0], 1.0])
    for info in content.infos:
        for frame in (info["cams"], *info["cam_sweeps"]):
            frame["CAM_BACK"]["cam_intrinsic"] = scale @ mini_intrinsic(frame)
    save_infos(tmp_path / "infos.pkl", content.infos, {})
    return tmp_path


def mini_intrinsic(frame):
    return frame["CAM_FRONT"]["cam_intrinsic"]


def build(root, mode="exact", test_mode=True, **sizes):
    both = dict(raw_hw=RAW_HW, **sizes)
    return DATASETS.build(
        dict(
            type="NuScenesOcc3DDataset",
            data_root=str(root),
            ann_file="infos.pkl",
            num_frames=2,
            test_mode=test_mode,
            seed=0,
            pipeline=[
                dict(type="DrawImageAug", final_hw=(64, 144), resize_range=(0.9, 1.1), **both),
                dict(type="LoadMultiViewImages", image_mode=mode, **both),
                dict(type="PackOccSample"),
            ],
        )
    )


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("test_mode", [True, False])
def test_dots_are_where_they_project(root, mini, mini_world, mode, test_mode):
    dataset = build(root, mode, test_mode, camera_hw=dict(CAM_BACK=OTHER_HW))
    dataset.set_epoch(0)
    seen = 0
    for i in range(len(dataset)):
        item = dataset[i]
        sample, images = item["data_samples"], item["inputs"]["img"].numpy().max(axis=1)
        assert images.shape == (12, 64, 144)
        frames = mini.frames[sample.scene_name, "LIDAR_TOP"]
        key = [frame for frame in frames if frame.is_key][i]
        dots = mini_world["world_dots"](mini_world["scene_names"].index(sample.scene_name))
        lidar = (dots - key.translation) @ key.rotation
        ego = lidar @ sample.lidar2ego[:3, :3].T + sample.lidar2ego[:3, 3]
        for image, matrix, path in zip(
            images, sample.ego2img.numpy(), sample.img_paths, strict=True
        ):
            u, v, depth, _ = matrix @ np.c_[ego, np.ones(len(ego))].T
            inside = (depth > 1) & (u > 3 * depth) & (u < 140 * depth)
            inside &= (v > 3 * depth) & (v < 60 * depth)
            for x, y in np.round([u[inside] / depth[inside], v[inside] / depth[inside]]).T:
                patch = image[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3]
                assert patch.max() > 100
                seen += "CAM_BACK/" in path
    assert seen > 5


def test_augmentation_covers_the_same_place():
    fixed = geometry.test_image_aug(RAW_HW, (64, 144))
    assert geometry.aug_for_size(fixed, RAW_HW, RAW_HW) is fixed
    twice = geometry.aug_for_size(fixed, RAW_HW, (180, 320))
    np.testing.assert_allclose(
        geometry.image_aug_matrix(twice) @ np.diag([2, 2, 1, 1]),
        geometry.image_aug_matrix(fixed),
        atol=1e-5,
    )
    assert twice.size_hw == fixed.size_hw


def test_wrong_sizes(root):
    with pytest.raises(BadDataError, match=r"CAM_BACK/.*has 180 x 240 pixels, expected 90 x 160"):
        build(root)[0]
    dataset = build(root, camera_hw=dict(CAM_BACK=OTHER_HW))
    dataset.pipeline.transforms[0].camera_hw = {}
    with pytest.raises(LoaderConfigError, match="in LoadMultiViewImages only: set it at the top"):
        dataset[0]
    with pytest.raises(LoaderConfigError, match="camera_hw of CAM_BACK is"):
        build(root, camera_hw=dict(CAM_BACK=(180,)))
    assert Path(build(root).data_root) == root
