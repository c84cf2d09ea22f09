"""Counts for a frame: operations, parameters, kernel launches and synchronisations.

Dimension letters as in the operations: B batch, H heads, Q queries, G groups, S samples, d, c
channels, L levels, R pairs of voxels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from models.detectors import OPUS
from scripts.timings.stages import (
    CPD,
    DECODER,
    IMAGES,
    LIDAR_DENSE,
    LIDAR_SPARSE,
    LIDAR_VOXELS,
    QUERIES,
    Ledger,
    watched,
)

Shape = Sequence[int]
#: Host functions of CUDA that start work on the device, and functions that wait for it.
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
FRAME = "opus frame"  # name of a frame in profiles


def _mixing(sampled: Shape, parameters: Shape, out_points: int, **_: Any) -> int:
    n, s_in, c = sampled
    return 2 * n * (s_in * c * c + out_points * s_in * c)


def _attention(query: Shape, *_: Any, **__: Any) -> int:
    B, H, Q, d = query
    return 2 * 2 * B * H * Q * Q * d


def _sampling(
    feats: Sequence[Shape], points: Shape, occ2img: Shape, *_: Any, out_shape: Shape, **__: Any
) -> int:
    """Count four texels of each level for every value of the output."""
    return 2 * 4 * len(feats) * math.prod(out_shape)


def _sparse_conv(
    features: Shape, weight: Shape, bias: Shape | None, pairs: Shape, *_: Any, **__: Any
) -> int:
    return 2 * pairs[1] * weight[0] * weight[-1]


def _winograd_conv(
    input: Shape, weight: Shape, bias: Shape | None, *_: Any, out_shape: Shape, **__: Any
) -> int:
    """Count a 3 x 3 convolution as it is defined, so that figures can be compared."""
    return 2 * 9 * math.prod(out_shape) * input[1]


def _winograd_weight_grad(input: Shape, grad: Shape, *_: Any, **__: Any) -> int:
    return 2 * 9 * math.prod(grad) * input[1]


FORMULAS: dict[str, Callable[..., int]] = {
    "adaptive_mixing": _mixing,
    "distance_attention": _attention,
    "multi_view_sampling": _sampling,
    "sparse_conv": _sparse_conv,
    "winograd_conv": _winograd_conv,
    "winograd_weight_grad": _winograd_weight_grad,
}


@contextmanager
def counted_operations() -> Iterator[FlopCounterMode]:
    """Count floating-point operations of products, including this project's operations."""
    mapping = {
        getattr(torch.ops.opus, name): formula
        for name, formula in FORMULAS.items()
        if hasattr(torch.ops.opus, name)
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        yield counter


def gigaflop_by_stage(model: OPUS, frame: Callable[[], object]) -> dict[str, float]:
    """Return the GFLOP (10^9 operations, a multiply-add counts as two) of the stages of a frame."""
    with torch.compiler.set_stance("force_eager"), counted_operations() as counter:
        ledger = Ledger(lambda: float(counter.get_total_flops()))
        with watched(model, ledger):
            frame()
    return {stage: 1e-9 * count for stage, count in ledger.take().items()}


def parameters_by_part(model: OPUS) -> dict[str, int]:
    """Return the number of parameters of every part of a model."""
    head = model.pts_bbox_head
    modules: dict[str, list[Any]] = {
        IMAGES: [model.img_backbone, model.img_neck],
        DECODER: [head.transformer],
        CPD: list(getattr(head, "densifiers", ())),
    }
    if model.has_lidar:
        modules[LIDAR_VOXELS] = [model.pts_voxel_layer]
        modules[LIDAR_SPARSE] = [model.pts_middle_encoder]
        dense = ("pts_backbone", "pts_neck", "final_conv")
        modules[LIDAR_DENSE] = [model.get_submodule(name) for name in dense]
    found = {
        part: sum(p.numel() for module in parts for p in module.parameters())
        for part, parts in modules.items()
    }
    found[QUERIES] = head.init_points.weight.numel() if hasattr(head, "init_points") else 0
    return {part: number for part, number in found.items() if number}


def launches_and_waits(frame: Callable[[], object], frames: int = 3) -> tuple[float, float]:
    """Return the number of launches and of waits for the GPU per frame."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(frames):
            with torch.profiler.record_function(FRAME):
                frame()
    launches, waits = count_calls(profile.events() or ())
    return launches / frames, waits / frames


def count_calls(events: Iterable[Any]) -> tuple[int, int]:
    """Count the launches and waits inside frames.

    Args:
        events: Events of torch's profiler, with a `name` and a `time_range` (`start`, `end`).
    """
    events = list(events)
    frames = [event.time_range for event in events if event.name == FRAME]
    launches = waits = 0
    for event in events:
        start = event.time_range.start
        if not any(frame.start <= start <= frame.end for frame in frames):
            continue
        if event.name.startswith(LAUNCHES):
            launches += 1
        elif event.name in WAITS:
            waits += 1
    return launches, waits


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not permitted: the peak covers the whole process
        pass


def peak_memory_mib(device: torch.device) -> dict[str, float]:
    """Return the peaks of the process's resident memory and of GPU tensors, in MiB."""
    peaks = {}
    status = Path("/proc/self/status")
    if os.access(status, os.R_OK):
        rows = [row for row in status.read_text().splitlines() if row.startswith("VmHWM")]
        peaks["host"] = int(rows[0].split()[1]) / 1024
    if device.type == "cuda":
        peaks["device"] = torch.cuda.max_memory_allocated(device) / 2**20
    return peaks
