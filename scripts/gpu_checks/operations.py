"""Native operations with inputs of a model's sizes, and their reference implementations.

Dimension letters: Q queries, T frames, N cameras, G groups, P sampling points, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models import ops

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model.

    Attributes:
        queries: Q.
        frames: T.
        cams: N.
        groups: G.
        sampled: P.
        channels: C.
        image_hw: Height and width of the network's input, pixels.
        points: Points of the last layer, over all queries.
        grid: Voxels (X, Y, Z).
        classes: Semantic classes.
    """

    queries: int
    frames: int
    cams: int
    groups: int
    sampled: int
    channels: int
    image_hw: tuple[int, int]
    points: int
    grid: tuple[int, int, int]
    classes: int = 17


SIZES = {
    "small": Sizes(40, 2, 2, 2, 2, 16, (32, 64), 400, (20, 16, 8)),
    "t": Sizes(600, 8, 6, 4, 4, 256, (256, 704), 76_800, (200, 200, 16)),
    "l": Sizes(4800, 8, 6, 4, 2, 256, (256, 704), 76_800, (200, 200, 16)),
}


@dataclass
class Case:
    """An operation with its inputs.

    Attributes:
        name: Name in the table.
        native: Native operation, called with the inputs.
        reference: Reference implementation, called with the same inputs.
        inputs: Input tensors.
        leaves: Indices of the inputs that need a gradient.
        tolerance: Largest allowed error of outputs and gradients, relative to the largest value.
        captures: Whether the operation never synchronises with the device.
    """

    name: str
    native: Run
    reference: Run
    inputs: list[Tensor]
    leaves: Sequence[int] = ()
    tolerance: float = 1e-4
    captures: bool = True


def make_cases(sizes: Sizes, device: str, seed: int = 0) -> list[Case]:
    """Return all operations of a frame and of a training step."""
    rng = torch.Generator().manual_seed(seed)
    make = _Inputs(sizes, device, rng)
    return [
        make.sampling(),
        make.attention(),
        make.mixing(),
        make.focal_loss(),
        make.nearest(),
        make.farthest(),
        make.voxel_max(),
        make.voxel_chain(),
        *make.convolutions(),
    ]


def largest_error(case: Case) -> float:
    """Return the largest difference from the reference, over outputs and gradients.

    It is relative to the largest value of each tensor. The reference implementation runs on the
    CPU.
    """
    results = []
    for run, device in ((case.native, None), (case.reference, "cpu")):
        inputs = [x.detach().to(device or x.device) for x in case.inputs]
        for i in case.leaves:
            inputs[i].requires_grad_()
        out = run(*inputs)
        values = [out.detach()]
        if case.leaves:
            weights = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
            leaves = [inputs[i] for i in case.leaves]
            values += torch.autograd.grad((out * weights).sum(), leaves)
        results.append([value.double().cpu() for value in values])
    errors = [0.0]
    for own, other in zip(*results, strict=True):
        assert own.shape == other.shape, case.name
        if other.numel():
            errors.append(float((own - other).abs().max() / other.abs().max().clamp(min=1e-12)))
    return max(errors)


class _Inputs:
    def __init__(self, sizes: Sizes, device: str, rng: torch.Generator) -> None:
        self.s, self.device, self.rng = sizes, device, rng

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.rng).to(self.device)

    def centres(self) -> Tensor:
        """Return [1, Q, 3] points in metres, denser near the car."""
        radius = 50 * self.uniform(self.s.queries) * self.uniform(self.s.queries).sqrt()
        angle = 2 * math.pi * self.uniform(self.s.queries)
        height = 4 * self.uniform(self.s.queries) - 1
        return torch.stack([radius * angle.cos(), radius * angle.sin(), height], -1)[None]

    def sampling(self) -> Case:
        s = self.s
        maps = feature_maps(s, self.device, self.rng)
        places = self.centres()[:, :, None, None] + self.random(
            1, s.queries, s.groups, s.sampled, 3
        )
        weights = self.random(1, s.queries, s.groups, s.sampled, len(maps)).softmax(-1)
        matrices = camera_matrices(s).to(self.device)

        def run(function: Callable[..., Tensor]) -> Run:
            return lambda m, p, w, *maps: function(maps, p, m, w, s.image_hw, s.cams)

        return Case(
            "multi_view_sampling", run(ops.multi_view_sampling),
            run(ops.multi_view_sampling_reference), [matrices, places, weights, *maps],
            leaves=range(1, 3 + len(maps)), tolerance=1e-3,
        )  # fmt: skip

    def attention(self) -> Case:
        s = self.s
        depth = min(32, s.channels // 8)
        q, k, v = (self.random(1, 8, s.queries, depth) for _ in range(3))
        tau = 2 * self.uniform(1, 8, s.queries)
        return Case(
            "distance_attention", ops.distance_attention, ops.distance_attention_reference,
            [q, k, v, tau, self.centres()], leaves=range(4), tolerance=1e-3,
        )  # fmt: skip

    def mixing(self) -> Case:
        s = self.s
        c, rows = s.channels // s.groups, s.frames * s.sampled
        count = s.queries * s.groups
        x, parameters = self.random(count, rows, c), self.random(count, c * c + 32 * rows)
        return Case(
            "adaptive_mixing",
            lambda x, p: ops.adaptive_mixing(x, p, 32),
            lambda x, p: ops.adaptive_mixing_reference(x, p, 32),
            [x, 0.2 * parameters], leaves=(0, 1), tolerance=1e-3,
        )  # fmt: skip

    def focal_loss(self) -> Case:
        number, classes = max(1, self.s.points // 2), self.s.classes
        labels = torch.randint(0, classes + 1, (number,), generator=self.rng).to(self.device)
        weights = self.uniform(classes) + 0.5

        def run(function: Callable[..., Tensor]) -> Run:
            return lambda x, labels, weights: function(x, labels, weights).reshape(1)

        return Case(
            "sigmoid_focal_loss", run(ops.sigmoid_focal_loss),
            run(ops.sigmoid_focal_loss_reference),
            [self.random(number, classes), labels, weights], leaves=(0,),
        )  # fmt: skip

    def cloud(self, number: int) -> Tensor:
        extent = torch.tensor([80.0, 80.0, 6.4], device=self.device)
        return self.uniform(number, 3) * extent

    def nearest(self) -> Case:
        clouds = [self.cloud(number) for number in (self.s.points, max(1, self.s.points // 4))]
        return Case(
            "nearest_neighbor",
            lambda a, b: ops.nearest_neighbor(a, b)[1],
            lambda a, b: ops.nearest_neighbor_reference(a, b)[1],
            clouds, tolerance=1e-5, captures=False,
        )  # fmt: skip

    def farthest(self) -> Case:
        number = max(8, self.s.points // 3)
        wanted = min(self.s.queries, number)
        return Case(
            "farthest_point_sampling",
            lambda x: ops.farthest_point_sampling(x, wanted),
            lambda x: ops.farthest_point_sampling_reference(x, wanted),
            [self.cloud(number)], tolerance=0.0,
        )  # fmt: skip

    def voxel_max(self) -> Case:
        number = self.s.points
        voxels = max(1, number // 3)
        index = torch.randint(0, voxels, (number,), generator=self.rng).to(self.device)
        return Case(
            "voxel_max",
            lambda x, i: ops.voxel_max(x, i, voxels),
            lambda x, i: ops.voxel_max_reference(x, i, voxels),
            [self.random(number, 64), index], leaves=(0,), tolerance=1e-6,
        )  # fmt: skip

    def keys(self) -> Tensor:
        """Return the voxels of points on a rough surface."""
        x_num, y_num, z_num = self.s.grid
        x, y = (
            (self.uniform(self.s.points) * size).long().clamp(max=size - 1)
            for size in (x_num, y_num)
        )
        z = ((x // 7 + y // 5) % z_num + (self.uniform(self.s.points) * 2).long()) % z_num
        return (x * y_num + y) * z_num + z

    def voxel_chain(self) -> Case:
        def run(function: Callable[..., ops.VoxelChain]) -> Run:
            return lambda keys: function(keys, 1, self.s.grid, [DILATE]).sets[1].keys

        return Case(
            "voxel_chain", run(ops.voxel_chain), run(ops.voxel_chain_reference), [self.keys()],
            tolerance=0.0, captures=False,
        )  # fmt: skip

    def convolutions(self) -> list[Case]:
        """Return the discretization's convolutions: 64 channels, dilating, then to the classes."""
        chain = ops.voxel_chain(self.keys(), 1, self.s.grid, [DILATE])
        keep = ops.ConvStep.submanifold((3, 3, 3))
        cases = []
        for name, inputs, step, width in (
            ("convolution, dilating", chain.sets[0], DILATE, 64),
            ("convolution, submanifold", chain.sets[1], keep, self.s.classes),
        ):
            is_subm = step is keep
            outputs = inputs if is_subm else chain.sets[1]
            pairs = ops.voxel_neighbors(inputs, outputs, step)
            kernel_map = ops.build_kernel_map(
                inputs.coords().cpu(), self.s.grid, 3, padding=1, subm=is_subm
            )
            x, weight = self.random(len(inputs), 64), 0.1 * self.random(width, 3, 3, 3, 64)
            cases.append(
                Case(
                    name,
                    lambda x, w, p=pairs: ops.gathered_conv(x, w, None, p),
                    lambda x, w, m=kernel_map: ops.sparse_conv(x, w, None, m),
                    [x, weight],
                    leaves=(0, 1),
                    tolerance=1e-3,
                )
            )
        return cases


DILATE = ops.ConvStep((3, 3, 3), (1, 1, 1), (1, 1, 1))


def feature_maps(sizes: Sizes, device: str, rng: torch.Generator) -> list[Tensor]:
    """Return four maps [1, T*N, C, h, w], channels-last in memory."""
    height, width = sizes.image_hw
    maps = []
    for stride in (4, 8, 16, 32):
        shape = (1, sizes.frames * sizes.cams, height // stride, width // stride, sizes.channels)
        level = torch.randn(shape, generator=rng).to(device)
        maps.append(level.permute(0, 1, 4, 2, 3))
    return maps


def camera_matrices(sizes: Sizes) -> Tensor:
    """Return [1, T*N, 4, 4], metres to pixels: a ring of cameras on a car driving 5 m per frame."""
    height, width = sizes.image_hw
    matrices = []
    for t in range(sizes.frames):
        for n in range(sizes.cams):
            yaw = 2 * math.pi * n / sizes.cams
            s, c = math.sin(yaw), math.cos(yaw)
            pixel = torch.tensor(
                [[0.8 * width, 0, width / 2, 0], [0, 0.8 * width, height / 2, 0],
                 [0, 0, 1, 0], [0, 0, 0, 1]]
            )  # fmt: skip
            pose = torch.tensor(
                [[s, -c, 0, 5.0 * t * s], [0, 0, -1, 1.5], [c, s, 0, 5.0 * t * c], [0, 0, 0, 1]]
            )
            matrices.append(pixel @ pose)
    return torch.stack(matrices)[None]
