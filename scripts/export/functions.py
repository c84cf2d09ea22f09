"""The exported functions of a model, over named tensors.

Dimension letters: T frames, N cameras, L pyramid levels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.export.graphs import Decoder, ImageNetwork, Layout
from scripts.export.interface import (
    OUTPUTS,
    Port,
    dynamic_shapes,
    feature_ports,
    geometry_ports,
    geometry_tensors,
    images_port,
    lidar_of,
)
from scripts.export.source import Source, frame_of, random_item


@dataclass(frozen=True)
class Function:
    """A function of tensors, to be written to one file.

    Attributes:
        suffix: Suffix that distinguishes its file from the other files of a model.
        module: The function.
        inputs: Its inputs, in order.
        outputs: Its outputs.
        example: Tensors of the shapes of the inputs.
    """

    suffix: str
    module: nn.Module
    inputs: list[Port]
    outputs: list[Port]
    example: tuple[Tensor, ...]

    def path(self, out: Path) -> Path:
        """Return the function's file: the one given by the user, or one next to it."""
        return out.with_name(out.stem + self.suffix + out.suffix)


class _Positional(nn.Module):
    """A function with only tensors as inputs, and the modules that it uses."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


@torch.no_grad()
def functions_of(
    source: Source, layout: Layout, *, split: bool = False, half: bool = False
) -> list[Function]:
    """Return the functions to export from a model: one, or image network and decoder.

    Args:
        source: The model.
        layout: Layout of the feature maps.
        split: Whether to return two functions: the image network of one frame, and the rest. A
            stream then computes only new frames.
        half: Whether the image network runs in half precision.
    """
    images = ImageNetwork(source.detector, layout, half=half).eval()
    decoder = Decoder(source.detector, source.image_hw, layout).eval()
    frame = frame_of(source, random_item(source))
    ends = geometry_ports(source), geometry_tensors(frame)
    if split:
        return _split(source, images, decoder, frame.images, *ends)
    return [_whole(source, images, decoder, frame.images, *ends)]


def _whole(
    source: Source,
    images: ImageNetwork,
    decoder: Decoder,
    pixels: Tensor,
    ports: list[Port],
    geometry: list[Tensor],
) -> Function:
    def predict(pixels: Tensor, occ2img: Tensor, *lidar: Tensor) -> Any:
        return tuple(decoder(images(pixels), occ2img, lidar_of(lidar)))

    return Function(
        "",
        _Positional(predict, images, decoder),
        [images_port(source, source.head.num_frames), *ports],
        list(OUTPUTS),
        (pixels, *geometry),
    )


def _split(
    source: Source,
    images: ImageNetwork,
    decoder: Decoder,
    pixels: Tensor,
    ports: list[Port],
    geometry: list[Tensor],
) -> list[Function]:
    T, layout = source.head.num_frames, images.layout
    pixels = pixels[: source.head.num_cams]
    levels = images(pixels)
    L = len(levels)

    def decode(*tensors: Tensor) -> Any:
        return tuple(decoder(tensors[:L], tensors[L], lidar_of(tensors[L + 1 :])))

    return [
        Function(
            "_image",
            _Positional(lambda pixels: tuple(images(pixels)), images),
            [images_port(source, 1)],
            feature_ports(levels, 1, layout),
            (pixels,),
        ),
        Function(
            "_decoder",
            _Positional(decode, decoder),
            [*feature_ports(levels, T, layout), *ports],
            list(OUTPUTS),
            (*(level.repeat(T, 1, 1, 1) for level in levels), *geometry),
        ),
    ]


@contextmanager
def without_warnings_of_torch() -> Iterator[None]:
    """Suppress a warning of torch's exporters about their own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        yield


def traced(function: Function) -> torch.export.ExportedProgram:
    """Trace a function with the operations that the models currently call."""
    return torch.export.export(
        function.module,
        function.example,
        dynamic_shapes=(tuple(dynamic_shapes(function.inputs)),),
        strict=False,
    )
