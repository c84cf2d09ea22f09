"""Conversion of a batch of uint8 images on the host to the network's input on the device.

Dimension letters: B batch, T frames, N cameras, I = B*T*N images, H, W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from models.errors import ModelConfigError
from models.layers.channels import empty_channels_last
from models.randomness import SampleDraws

_GEOMETRY = ("ego2img", "ego2occ")  # the fields of a sample that prediction reads


@MODELS.register_module()
class PhotometricDistortion(nn.Module):
    """Random colour changes of every image, computed on the images' device.

    The changes are, in this order and each with probability 1/2: brightness, contrast, saturation,
    hue, a random permutation of the channels. With probability 1/2 contrast comes after hue
    instead. Values are not clipped; only saturation is limited to that of a pure colour. Random
    numbers come from a CPU generator with the sample's seed. They do not depend on the device or
    on the batch.

    Args:
        brightness_delta: Largest shift, in grey values.
        contrast_range: Range of the factor of all values.
        saturation_range: Range of the factor of the HSV saturation.
        hue_delta: Largest shift of the HSV hue, in degrees.
    """

    def __init__(
        self,
        brightness_delta: float = 32.0,
        contrast_range: tuple[float, float] = (0.5, 1.5),
        saturation_range: tuple[float, float] = (0.5, 1.5),
        hue_delta: float = 18.0,
    ) -> None:
        super().__init__()
        self.brightness_delta = brightness_delta
        self.contrast_range = contrast_range
        self.saturation_range = saturation_range
        self.hue_delta = hue_delta

    @torch.no_grad()
    def forward(self, images: Tensor, draws: SampleDraws | None = None) -> Tensor:
        """Return distorted copies of images.

        Args:
            images: `[I, 3, H, W]`: BGR, float, grey values 0 - 255, of one sample after another.
            draws: Seeds of the B samples; None takes one seed for all images from torch's
                generator.
        """
        draws = draws or SampleDraws.fresh(1)
        number = len(images) // len(draws.seeds)
        drawn = [self._draw_changes(number, generator) for generator in draws.generators()]
        columns = (torch.cat(column) for column in zip(*drawn, strict=True))
        brightness, contrast, contrast_first, saturation, hue, order = columns

        def per_image(values: Tensor) -> Tensor:
            return values.to(images.device, images.dtype, non_blocking=True).view(-1, 1, 1, 1)

        first = per_image(torch.where(contrast_first, contrast, 1.0))
        last = per_image(torch.where(contrast_first, 1.0, contrast))
        images = (images + per_image(brightness)) * first
        changed = torch.nonzero((saturation != 1) | (hue != 0)).squeeze(1)
        if len(changed):
            where = changed.to(images.device, non_blocking=True)
            images[where] = change_saturation_and_hue(
                images[where], per_image(saturation[changed]), per_image(hue[changed])
            )
        rows = torch.arange(len(images), device=images.device)[:, None]
        return (images * last)[rows, order.to(images.device, non_blocking=True)]

    def _draw_changes(self, number: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw the changes of `number` images of a sample.

        Returns:
            `[number]` each: brightness shift, contrast factor, whether contrast comes before
            saturation, saturation factor, hue shift; and `[number, 3]`, the channel order.
        """
        coins = torch.rand(6, number, generator=generator) < 0.5
        values = torch.rand(4, number, generator=generator)
        ranges = [
            (-self.brightness_delta, self.brightness_delta),
            self.contrast_range,
            self.saturation_range,
            (-self.hue_delta, self.hue_delta),
        ]
        low, high = torch.tensor(ranges).unsqueeze(-1).unbind(1)
        neutral = torch.tensor([0.0, 1.0, 1.0, 0.0]).unsqueeze(-1)
        changes = torch.where(coins[:4], low + values * (high - low), neutral)
        brightness, contrast, saturation, hue = changes
        order = torch.argsort(torch.rand(number, 3, generator=generator), dim=1)
        order = torch.where(coins[5, :, None], order, torch.arange(3))
        return brightness, contrast, coins[4], saturation, hue, order


def change_saturation_and_hue(images: Tensor, factor: Tensor, shift_deg: Tensor) -> Tensor:
    """Scale the HSV saturation and shift the HSV hue of BGR images.

    Args:
        images: `[I, 3, H, W]`; values may lie outside 0 - 255.
        factor: `[I, 1, 1, 1]` factor of the saturation; the product is limited to 1.
        shift_deg: `[I, 1, 1, 1]` shift of the hue in degrees.

    Returns:
        `[I, 3, H, W]` images. The HSV value (largest channel) of every pixel is unchanged.
    """
    blue, green, red = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    divisor = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sector = sector + shift_deg[:, 0] / 60  # in sixths of the hue circle
    # the saturation, chroma / value, is 1 if the smallest channel is 0
    chroma = torch.minimum(chroma * factor[:, 0], torch.maximum(chroma, value))
    channels = []
    for start in (1.0, 3.0, 5.0):  # blue, green, red
        k = torch.remainder(start + sector, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


@dataclass(frozen=True)
class FrameSelection:
    """Selected frames of a batch.

    Attributes:
        frames: Indices of the frames among the B*T frames of the batch.
        num_cams: N.
    """

    frames: Sequence[int]
    num_cams: int

    def of(self, samples: Sequence[Tensor]) -> list[Tensor]:
        """Return the images `[N, 3, H, W]` of each selected frame.

        Args:
            samples: `[T*N, 3, H, W]` each.
        """
        per_sample = len(samples[0]) // self.num_cams
        images = []
        for frame in self.frames:
            start = frame % per_sample * self.num_cams
            images.append(samples[frame // per_sample][start : start + self.num_cams])
        return images


@MODELS.register_module()
class OPUSDataPreprocessor(BaseDataPreprocessor):
    """Preprocessor that stacks, distorts (in training), normalises and pads the images of a batch.

    Args:
        mean: Mean of the three channels, in RGB order if `bgr_to_rgb`.
        std: Standard deviation of the channels, in the same order.
        bgr_to_rgb: Whether to swap the channels before normalising.
        pad_size_divisor: Normalised images are padded with zeros at the right and bottom to a
            multiple of this.
        distortion: Configuration of the distortion in training; None disables it.
        non_blocking: Whether to copy to the device asynchronously.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        bgr_to_rgb: bool = True,
        pad_size_divisor: int = 32,
        distortion: dict | None = None,
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.bgr_to_rgb = bgr_to_rgb
        self.pad_size_divisor = pad_size_divisor
        self.distortion = None if distortion is None else MODELS.build(distortion)

    def forward(
        self, data: dict, training: bool = False, selection: FrameSelection | None = None
    ) -> dict:
        """Return the network's input.

        Args:
            data: `inputs` with `img`, a uint8 BGR tensor `[T*N, 3, H, W]` per sample, and
                `data_samples`, as returned by `pseudo_collate`. Other entries of `inputs`, such
                as LiDAR `points`, are passed on.
            training: Whether to distort the colours.
            selection: Frames to process; None for all. Other frames are not copied to the device.

        Returns:
            `inputs` with `img`, float `[B, T*N, 3, H', W']`, channels-last in memory, and
            `data_samples`, both on the device. Outside training, samples hold only the fields that
            prediction reads. With a selection, `img` is `[n, N, 3, H', W']`, and `inputs` holds
            `new_frames`, the n frame indices.

        Raises:
            ModelConfigError: If the samples of the batch differ in number or size of images.
        """
        samples: Sequence[Tensor] = data["inputs"]["img"]
        shapes = {tuple(images.shape) for images in samples}
        if len(shapes) > 1:
            raise ModelConfigError(
                f"The images of a batch need one shape [T*N, 3, H, W], got {sorted(shapes)}: set "
                "one final size in the image augmentation and one number of frames."
            )
        inputs = dict(data["inputs"])
        if selection is not None:
            inputs |= dict(img=selection.of(samples), new_frames=list(selection.frames))
        if training:
            data = self.cast_data(dict(data, inputs=inputs))
        else:
            elements = [self._with_geometry(sample) for sample in data["data_samples"]]
            data = dict(data, inputs=self.cast_data(inputs), data_samples=elements)
        samples = data["inputs"]["img"]
        if samples:
            # do not concatenate a single sample: that would copy it and lose its layout
            images = samples[0] if len(samples) == 1 else torch.cat(list(samples))
            lead = (len(samples), -1)
        else:
            assert selection is not None
            images = self.mean.new_zeros(0, *next(iter(shapes))[1:])
            lead = (0, selection.num_cams)
        if training and self.distortion is not None:
            draws = SampleDraws.of(data["data_samples"]).part("distortion")
            images = self.distortion(images.float(), draws)
        images = self._normalised(images)
        inputs = dict(data["inputs"], img=images.unflatten(0, lead))
        return dict(data, inputs=inputs)

    def _with_geometry(self, sample: BaseDataElement) -> BaseDataElement:
        """Return a copy of a sample with its matrices on the device.

        Labels are not moved: metrics read them on the host.
        """
        moved = sample.new()
        for name in _GEOMETRY:
            if name in moved:
                moved.set_data({name: self.cast_data(moved.get(name))})
        return moved

    def _normalised(self, images: Tensor) -> Tensor:
        """Normalise and pad images `[I, 3, H, W]`; return them as float, channels-last."""
        if self.bgr_to_rgb:
            images = images.flip(1)  # still uint8 unless distorted
        height, width = images.shape[-2:]
        pad_h, pad_w = (-size % self.pad_size_divisor for size in (height, width))
        shape = (*images.shape[:2], height + pad_h, width + pad_w)
        mean, std = self.mean, self.std
        if mean.element_size() < 4:  # half-precision model: normalise in float32
            mean, std = mean.float(), std.float()
        padded = empty_channels_last(shape, mean)
        padded[..., height:, :] = 0
        padded[..., width:] = 0
        inside = padded[..., :height, :width]
        torch.sub(images, mean, out=inside)
        inside.div_(std)
        return padded
