"""Data preprocessor and photometric distortion."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement

from models.data_preprocessor import (
    OPUSDataPreprocessor,
    PhotometricDistortion,
    change_saturation_and_hue,
)

NEUTRAL = dict(
    brightness_delta=0.0,
    contrast_range=(1.0, 1.0),
    saturation_range=(1.0, 1.0),
    hue_delta=0.0,
)


def batch_of(*images: torch.Tensor) -> dict:
    samples = [BaseDataElement(metainfo=dict(index=i)) for i in range(len(images))]
    return dict(inputs=dict(img=list(images)), data_samples=samples)


def random_images(number: int, height: int = 8, width: int = 10) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, height, width)).to(torch.uint8)


def test_rgb_normalised_and_padded_with_zeros() -> None:
    images = torch.zeros(2, 3, 30, 33, dtype=torch.uint8)
    images[:, 0], images[:, 1], images[:, 2] = 10, 20, 30  # blue, green, red
    out = OPUSDataPreprocessor()(batch_of(images, images), training=False)
    image = out["inputs"]["img"]
    assert image.shape == (2, 2, 3, 32, 64)
    red, green, blue = (30 - 123.675) / 58.395, (20 - 116.28) / 57.12, (10 - 103.53) / 57.375
    torch.testing.assert_close(image[0, 0, :, 0, 0], torch.tensor([red, green, blue]))
    assert not image[..., 30:, :].any() and not image[..., :, 33:].any()
    assert image[..., :30, :33].all()
    assert out["data_samples"][1].metainfo == dict(index=1)


def test_multiples_of_the_divisor_are_not_padded() -> None:
    out = OPUSDataPreprocessor()(batch_of(random_images(1, 64, 96)))
    assert out["inputs"]["img"].shape == (1, 1, 3, 64, 96)


def test_images_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="need one shape"):
        OPUSDataPreprocessor()(batch_of(random_images(1), random_images(1, 9, 9)))


def test_distortion_acts_in_training_alone_and_can_be_off() -> None:
    batch = batch_of(random_images(12))
    distorting = OPUSDataPreprocessor(distortion=dict(type="PhotometricDistortion"))
    plain = OPUSDataPreprocessor()
    reference = plain(batch, training=True)["inputs"]["img"]
    assert torch.equal(distorting(batch, training=False)["inputs"]["img"], reference)
    assert not torch.equal(distorting(batch, training=True)["inputs"]["img"], reference)


def test_seed_decides_the_distortion() -> None:
    images, distortion = random_images(6).float(), PhotometricDistortion()
    torch.manual_seed(3)
    first, second = distortion(images), distortion(images)
    torch.manual_seed(3)
    assert torch.equal(distortion(images), first)
    assert not torch.equal(first, second)


def test_distortion_leaves_its_input_alone() -> None:
    images = random_images(6).float()
    before = images.clone()
    PhotometricDistortion()(images)
    assert torch.equal(images, before)


def test_each_change_has_probability_one_half_and_its_range() -> None:
    grey = torch.full((4000, 3, 1, 1), 100.0)
    brightness = PhotometricDistortion(**(NEUTRAL | dict(brightness_delta=32.0)))(grey)
    shift = brightness[:, 0, 0, 0] - 100
    assert 0.46 < (shift != 0).float().mean() < 0.54
    assert -32 <= shift.min() < -30 and 30 < shift.max() <= 32
    assert abs(shift.mean()) < 1

    contrast = PhotometricDistortion(**(NEUTRAL | dict(contrast_range=(0.5, 1.5))))(grey)
    factor = contrast[:, 0, 0, 0] / 100
    assert 0.46 < (factor != 1).float().mean() < 0.54
    assert 0.5 <= factor.min() < 0.52 and 1.48 < factor.max() <= 1.5

    coloured = torch.tensor([10.0, 20.0, 30.0]).view(1, 3, 1, 1).expand(6000, -1, -1, -1)
    orders = PhotometricDistortion(**NEUTRAL)(coloured)[..., 0, 0]
    rows, counts = torch.unique(orders, dim=0, return_counts=True)
    assert len(rows) == 6
    kept = (orders == coloured[0, :, 0, 0]).all(1).float().mean()
    assert 0.55 < kept < 0.62  # not permuted: 1/2, or permuted to the same order: 1/12
    assert counts.min() > 6000 / 12 * 0.8


def test_contrast_is_first_or_last_by_a_coin() -> None:
    """The order distinguishes 2 * (100 + b) from 2 * 100 + b."""
    changes = dict(contrast_range=(2.0, 2.0), saturation_range=(1.5, 1.5))
    colour = torch.tensor([0.0, 90.0, 100.0]).view(1, 3, 1, 1).expand(4000, -1, -1, -1)
    out = PhotometricDistortion(**(NEUTRAL | changes))(colour)[..., 0, 0].sort(dim=1).values
    # saturation is full already, so its change is nothing, whichever comes first
    assert set(out[:, 2].tolist()) == {100.0, 200.0}
    distortion = PhotometricDistortion(**(NEUTRAL | dict(contrast_range=(2.0, 2.0))))
    first = distortion(torch.full((4000, 3, 1, 1), 100.0))[:, 0, 0, 0]
    assert 0.46 < (first == 200).float().mean() < 0.54


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 0.0), (0.5, 0.0), (1.0, 18.0), (1.5, -18.0)])
def test_saturation_and_hue_equal_opencv(factor: float, shift: float) -> None:
    images = random_images(3, 16, 16).float()
    images[0, :, 0, :4] = torch.tensor([0.0, 7.0, 255.0, 128.0])  # grey pixels have no hue
    out = change_saturation_and_hue(
        images, torch.full((3, 1, 1, 1), factor), torch.full((3, 1, 1, 1), shift)
    )
    for image, changed in zip(images.numpy(), out.numpy(), strict=True):
        hsv = cv2.cvtColor(np.ascontiguousarray(image.transpose(1, 2, 0)), cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0] + shift) % 360
        hsv[..., 1] = np.minimum(hsv[..., 1] * factor, 1.0)
        expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR).transpose(2, 0, 1)
        np.testing.assert_allclose(changed, expected, atol=0.02)


def test_saturation_of_values_below_zero_is_finite() -> None:
    images = torch.tensor([-20.0, -5.0, 3.0]).view(1, 3, 1, 1)
    one = torch.ones(1, 1, 1, 1)
    torch.testing.assert_close(change_saturation_and_hue(images, one, 0 * one), images)
    assert change_saturation_and_hue(images, 1.5 * one, 18 * one).isfinite().all()


def test_images_of_a_sample_are_distorted_independently() -> None:
    image = random_images(1).expand(24, -1, -1, -1)
    out = OPUSDataPreprocessor(distortion=dict(type="PhotometricDistortion"))(
        batch_of(image), training=True
    )["inputs"]["img"][0]
    assert len(torch.unique(out.flatten(1), dim=0)) > 12
