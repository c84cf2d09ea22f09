"""Define the sizes of the published variants at 704 x 256 and 8 frames, and make inputs.

Dimensions: B batch (1), T frames, N cameras, Q queries, G groups, P sampling points, C channels,
L levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.common import street

FRAMES, CAMS, GROUPS, CHANNELS, HEADS = 8, 6, 4, 256, 8
IMG_HW = (256, 704)
STRIDES = (4, 8, 16, 32)
MIXED_POINTS = 32


@dataclass(frozen=True)
class Variant:
    name: str
    queries: int
    points: int  # P
    refined: tuple[int, ...]  # points of a query after each layer


VARIANTS = {
    "t": Variant("V2-T", 600, 4, (8, 16, 32, 64, 128)),
    "s": Variant("V2-S", 1200, 2, (4, 8, 16, 32, 64)),
    "m": Variant("V2-M", 2400, 2, (2, 4, 8, 16, 32)),
    "l": Variant("V2-L", 4800, 2, (1, 2, 4, 8, 16)),
    "v1t": Variant("V1-T", 600, 4, (1, 4, 16, 32, 64, 128)),
    "v1l": Variant("V1-L", 4800, 2, (1, 2, 4, 8, 16, 16)),
}


def camera_matrices() -> Tensor:
    """Return occ2img [T*N, 4, 4] of a ring of cameras at 1.5 m; the car drives 5 m per frame."""
    matrices = []
    for t in range(FRAMES):
        for n in range(CAMS):
            s, c = math.sin(math.pi * n / 3), math.cos(math.pi * n / 3)
            pixel = torch.tensor(
                [[560.0, 0, IMG_HW[1] / 2, 0], [0, 560, IMG_HW[0] / 2, 0], [0, 0, 1, 0],
                 [0, 0, 0, 1]]
            )  # fmt: skip
            pose = torch.tensor(
                [[s, -c, 0, 5.0 * t * s], [0, 0, -1, 1.5], [c, s, 0, 5.0 * t * c], [0, 0, 0, 1]]
            )
            matrices.append(pixel @ pose)
    return torch.stack(matrices)


def feature_maps(channels_last: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return L maps [1, T*N, C, h, w], optionally channels-last in memory as in the detector."""
    maps = []
    for stride in STRIDES:
        size = (1, FRAMES * CAMS, CHANNELS, IMG_HW[0] // stride, IMG_HW[1] // stride)
        level = torch.randn(size).to(dtype)
        if channels_last:
            level = level.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        maps.append(level)
    return maps


def query_centres(queries: int) -> Tensor:
    """Return centres [1, Q, 3], metres: near the ground and denser near the car, as voxels are."""
    radius = 56 * torch.rand(queries).sqrt() * torch.rand(queries).sqrt()
    angle = 2 * math.pi * torch.rand(queries)
    height = 4.4 * torch.rand(queries) ** 2 - 1
    return torch.stack([radius * angle.cos(), radius * angle.sin(), height], -1)[None]


def sampling_points(variant: Variant) -> Tensor:
    """Return points [1, Q, G, P, 3], metres: one or two metres around the centres."""
    centres = query_centres(variant.queries)[:, :, None, None]
    return centres + 1.5 * torch.randn(1, variant.queries, GROUPS, variant.points, 3)


def surface_points(count: int, queries: int) -> Tensor:
    """Return points [1, queries, count / queries, 3], metres, on the top surfaces of a street.

    76,800 points occupy about 28,000 voxels, which a 3 x 3 x 3 window dilates to about 116,000.
    """
    edge_m = 0.4
    occupied = street((200, 200, 16), edge_m) != 17
    top = (occupied * torch.arange(1, 17)).amax(-1) - 1  # [X, Y]
    columns = torch.ones(200, 200).nonzero()
    nearest = (columns - 100).float().norm(dim=1).argsort()[:26000].sort().values
    x, y = columns[nearest[torch.randint(0, len(nearest), (count,)).sort().values]].unbind(1)
    low = torch.tensor([-40.0, -40.0, -1.0])
    centres = (torch.stack([x, y, top[x, y]], 1) + 0.5) * edge_m + low
    return (centres + 0.1 * torch.randn(count, 3)).view(1, queries, -1, 3)
