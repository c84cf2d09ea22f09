"""Times of decoder and discretization on synthetic maps: by precision, eager and captured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scripts.gpu_checks.operations import Sizes, camera_matrices, feature_maps
from scripts.gpu_checks.timing import measure

PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Frame:
    """Times of a part of a frame, in milliseconds.

    Attributes:
        part: Part of the frame, and its precision.
        eager: Time when called from Python.
        captured: Time as a replayed CUDA graph; None if not captured.
        error: Largest difference from single precision, relative to the largest value.
    """

    part: str
    eager: float
    captured: float | None
    error: float


def build_decoder(sizes: Sizes) -> Any:
    """Return an OPUS-V2 decoder, with random values for weights that are initialised to zero."""
    from models.decoder import OPUSDecoder  # needs MMEngine or its substitute

    torch.manual_seed(0)
    decoder = OPUSDecoder(
        pc_range=(-40.0, -40.0, -1.0, 40.0, 40.0, 5.4),
        embed_dims=sizes.channels,
        point_channels=32,
        num_frames=sizes.frames,
        num_cams=sizes.cams,
        num_levels=4,
        num_refines=refinements(sizes),
        num_points=sizes.sampled,
        num_groups=sizes.groups,
    )
    for name, parameter in decoder.named_parameters():
        if name.endswith(("parameter_generator.weight", "sampling_offset.weight")):
            nn.init.normal_(parameter, std=0.02)
    return decoder


def refinements(sizes: Sizes) -> list[int]:
    """Return the points per query after each of five layers, doubling up to the last layer."""
    last = max(1, sizes.points // sizes.queries)
    return [max(1, last // 2**i) for i in (4, 3, 2, 1, 0)]


def time_frames(sizes: Sizes, device: str) -> Iterator[Frame]:
    """Yield the times of decoder, discretization and decoder in training."""
    from models.decoder import FeatureMaps
    from models.decoder.precision import products_in
    from models.heads.densifier import CPDDensifier

    rng = torch.Generator().manual_seed(0)
    decoder = build_decoder(sizes).to(device).eval()
    x, y, z = sizes.grid
    cpd = CPDDensifier(
        pc_range=(-40.0, -40.0, -1.0, 40.0, 40.0, 5.4),
        voxel_size=(80 / x, 80 / y, 6.4 / z),
        num_classes=sizes.classes,
    ).to(device).eval()  # fmt: skip
    levels = feature_maps(sizes, device, rng)
    place = torch.device(device)
    exact: dict[str, Tensor] = {}
    for precision in PRECISIONS:
        maps = [level.bfloat16() for level in levels] if precision == "bfloat16" else levels
        given = FeatureMaps(
            tuple(maps), camera_matrices(sizes).to(device), sizes.image_hw, None, decoder.pc_range
        )
        starts = torch.rand(1, sizes.queries, 1, 3, generator=rng.manual_seed(1)).to(device)

        def decode(
            given: FeatureMaps = given, starts: Tensor = starts, precision: str = precision
        ) -> Any:
            with torch.no_grad(), products_in(precision, place):
                return decoder.decode(starts, given)

        output = decode()
        points, feats = output.points[-1], output.point_feats[-1]
        error = _error(exact.setdefault("decoder", points), points)
        times = measure([decode], device)
        yield Frame(f"decoder, {precision}", times.eager, times.captured, error)

        in_metres = points * (decoder.pc_range[3:] - decoder.pc_range[:3]) + decoder.pc_range[:3]
        room: list[int] = []  # filled once the numbers of voxels are known

        def discretize(
            in_metres: Tensor = in_metres,
            feats: Tensor = feats,
            room: list[int] = room,
            precision: str = precision,
        ) -> Any:
            with torch.no_grad(), products_in(precision, place):
                chain = cpd.voxel_chain([in_metres], room or None)
                chain.place.clamp_(min=0)
                return cpd(in_metres, feats, chain), chain

        voxels, chain = discretize()
        room[:] = [math.ceil(1.25 * len(own)) for own in chain.sets]
        times = measure([discretize], device)
        name = f"discretization ({len(voxels.logits)} voxels), {precision}"
        yield Frame(name, times.eager, times.captured, 0.0)
        eager = _training_ms(decoder, given, starts, precision)
        yield Frame(f"decoder in training, {precision}", eager, None, 0.0)
    torch.backends.cuda.matmul.allow_tf32 = False


def _training_ms(decoder: Any, given: Any, starts: Tensor, precision: str) -> float:
    """Return the time of a forward and backward pass with gradients of maps and parameters."""
    from models.decoder.precision import products_in

    decoder.train()
    levels = [level.detach().requires_grad_() for level in given.mlvl_feats]
    maps = dataclasses.replace(given, mlvl_feats=tuple(levels))
    layers = len(decoder.decoder_layers)
    seeds = torch.arange(3 * layers, device=starts.device).view(layers, 3, 1)

    def step() -> None:
        for tensor in (*levels, *decoder.parameters()):
            tensor.grad = None
        with products_in(precision, starts.device):
            output = decoder.decode(starts, maps, seeds)
        parts = [*output.points, *output.point_feats]
        torch.stack([part.square().mean() for part in parts]).sum().backward()

    eager = measure([step], starts.device.type, captures=False).eager
    decoder.eval()
    return eager


def _error(exact: Tensor, found: Tensor) -> float:
    return float((exact - found).abs().max() / exact.abs().max())
