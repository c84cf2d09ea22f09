"""Pictures of browse_dataset, against geometry of the raw data and against the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from loaders import register  # noqa: F401 - registers data sets and transforms
from scripts.visualization import browsing as browse_dataset
from scripts.visualization.augmented_sample import (
    AugmentedSample,
    AugmentedSource,
    compose,
    describe_augmentation,
    flipped_axes,
)
from tests.loaders.conftest import (
    RAW_HW,
    MiniSet,
    ego_pose,
    mini,  # noqa: F401 - a fixture
    project,
    world_dots,
)

RESIZE, FINAL_HW = 0.7, (44, 96)  # of images of 63 x 112 pixels after the resize
LOW, EDGE = np.array([-40.0, -40.0, -1.0]), 0.4

CONFIG = """
randomness = dict(seed=3)
model = dict(data_preprocessor=dict(type='OPUSDataPreprocessor'{distortion}))
train_dataloader = dict(dataset=dict(
    type='NuScenesOcc3DDataset', data_root={root!r}, num_frames=2, use_lidar=True,
    ann_file='nuscenes_infos_train_mini_sweep.pkl',
    pipeline=[
        dict(type='DrawImageAug', raw_hw=(90, 160), final_hw=(44, 96), resize_range=(0.7, 0.7),
             flip_prob={flip}),
        dict(type='LoadMultiViewImages', raw_hw=(90, 160)),
        dict(type='LoadOcc3DLabels'), dict(type='LoadLidarSweeps', num_sweeps=0),
        dict(type='RandomFlipBEV', bev_flip_prob=({flip_x}, {flip_y})),
        dict(type='PackOccSample')]))
val_dataloader = None
"""


def config(mini: MiniSet, tmp_path: Path, flip: int, bev: tuple[int, int], extra: str = "") -> Path:  # noqa: F811
    path = tmp_path / "browse.py"
    text = CONFIG.format(
        root=str(mini.root), flip=flip, flip_x=bev[0], flip_y=bev[1], distortion=extra
    )
    path.write_text(
        f"custom_imports = dict(imports=['models.register', 'loaders.register'])\n{text}"
    )
    return path


@pytest.fixture(params=[(0, (0, 0)), (1, (1, 0)), (1, (0, 1)), (0, (1, 1))], ids=str)
def drawn(request: Any, mini: MiniSet, tmp_path: Path) -> tuple[AugmentedSample, int, tuple]:  # noqa: F811
    flip, bev = request.param
    source = AugmentedSource(Config.fromfile(config(mini, tmp_path, flip, bev)))
    return source[1], flip, bev


def test_voxel_centres_land_where_the_raw_geometry_says(
    mini: MiniSet,  # noqa: F811
    drawn: tuple[AugmentedSample, int, tuple],
) -> None:
    sample, flip, bev = drawn
    label = mini.labels[sample.token]
    index = np.argwhere((label["semantics"] != 17) & label["mask_camera"])
    # Second key frame of the first scene, at 0.5 s; Occ3D's grid is in the ego frame.
    rotation, translation = ego_pose(0, 0.5)
    in_global = (LOW + (index + 0.5) * EDGE) @ rotation.T + translation
    # The drawn labels are those of the file, mirrored.
    centres, labels = sample.occupied()
    sign = np.where([bev[0], bev[1], 0], -1.0, 1.0)
    order = np.lexsort((centres * sign).round(3).T)
    expected_order = np.lexsort((LOW + (index + 0.5) * EDGE).round(3).T)
    np.testing.assert_array_equal(labels[order], label["semantics"][tuple(index.T)][expected_order])
    for image, camera in enumerate(sample.cameras):
        frame = next(f for f in mini.frames["scene-0061", camera] if f.is_key and "-6" in f.token)
        raw, depth = project(in_global[expected_order], frame.rotation, frame.translation)
        u, v = raw[:, 0] * RESIZE, raw[:, 1] * RESIZE - (63 - FINAL_HW[0])
        found = sample.pixels(centres, image)[order]
        ahead = depth > 1
        assert ahead.sum() > 100
        np.testing.assert_allclose(found[:, 2], depth, atol=1e-3)
        np.testing.assert_allclose(found[ahead, 1], v[ahead], atol=0.02, rtol=1e-4)
        # The crop's left edge is random: one shift for all points of all images.
        left = (FINAL_HW[1] - found[ahead, 0] if flip else found[ahead, 0]) - u[ahead]
        scale = 1 + np.abs(u[ahead])
        assert (np.abs(left - np.median(left)) / scale < 1e-3).all()
        assert f"crop from ({round(-np.median(left))}, 19)" in describe_augmentation(sample)


def test_the_dots_of_the_world_are_white_where_their_lidar_points_are_drawn(
    drawn: tuple[AugmentedSample, int, tuple],
) -> None:
    """Images, LiDAR points and matrices agree; the expectation does not use the matrices."""
    sample, _, _ = drawn
    assert sample.points is not None
    dots = sample.points[: len(world_dots(0))]
    seen = 0
    for image, pixels in enumerate(sample.images):
        column, row, depth = sample.pixels(dots, image).T
        inside = (depth > 1) & (column > 4) & (column < 91) & (row > 4) & (row < 39)
        values = pixels[row[inside].astype(int), column[inside].astype(int)]
        assert (values > 170).all()
        seen += inside.sum()
    assert seen > 15
    # Of the image as a whole little is bright, so the agreement is no accident.
    assert (sample.images.min(axis=-1) > 170).mean() < 0.1


def test_caption_and_picture(drawn: tuple[AugmentedSample, int, tuple]) -> None:
    sample, flip, bev = drawn
    words = describe_augmentation(sample)
    assert "resized × 0.700" in words
    assert ("images flipped" if flip else "images not flipped") in words
    assert flipped_axes(sample) == [axis for axis, on in zip("xy", bev, strict=True) if on]
    picture, tall = compose(sample), compose(sample, all_frames=True)
    assert tall.height > 1.5 * picture.height and tall.width == picture.width


def test_distorted_colours_are_shown(mini: MiniSet, tmp_path: Path) -> None:  # noqa: F811
    plain = AugmentedSource(Config.fromfile(config(mini, tmp_path, 0, (0, 0))))[0]
    extra = ", distortion=dict(type='PhotometricDistortion')"
    changed = AugmentedSource(Config.fromfile(config(mini, tmp_path, 0, (0, 0), extra)))[0]
    assert (plain.images != changed.images).mean() > 0.3
    np.testing.assert_array_equal(plain.ego2img, changed.ego2img)


def test_command(mini: MiniSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    path, out = config(mini, tmp_path, 1, (1, 1)), tmp_path / "pictures"
    arguments = [str(path), "--num", "2", "--out", str(out)]
    assert browse_dataset.main(arguments) == 0
    files = sorted(out.iterdir())
    assert [file.name[:5] for file in files] == ["00000", "00005"]
    with Image.open(files[0]) as picture:
        assert min(picture.size) > 400
    for wrong, message in (
        (["--split", "val"], "has no val_dataloader"),
        (["--index", "99"], "the split has samples 0 to 5"),
        (["--num", "0"], "'0' is not a whole number from 1"),
        (["--out", str(path)], "is a file, choose a folder"),
    ):
        assert browse_dataset.main([str(path), *wrong]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert message in line


def test_raw_images_have_the_size_that_the_test_assumes() -> None:
    assert (round(RAW_HW[0] * RESIZE), round(RAW_HW[1] * RESIZE)) == (63, 112)
