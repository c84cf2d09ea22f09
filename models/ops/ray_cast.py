"""Ray casting through voxel grids: the first occupied voxel of each ray.

Dimensions:
    G grids, X Y Z voxels along the axes, O origins, D directions, R = G * O * D rays.

The traversal visits every voxel that a ray passes, in order (Amanatides & Woo, "A Fast Voxel
Traversal Algorithm for Ray Tracing", Eurographics 1987). In voxel units a ray crosses the boundary
k of an axis at `t(k) = (k - origin) * (1 / direction)`; simultaneous crossings are ordered x, y, z.
The native operation skips empty space; its results are bitwise equal to those of single steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._extension import native, on_load, runs_natively

__all__ = ["OccupancyPyramid", "RayHits", "ray_cast", "ray_cast_reference"]

# Same bounds as in models/csrc/ray_cast/ray_cast.h, in voxel units.
_MAX_ORIGIN = 1e9
_MIN_DIRECTION = 1e-100
_MAX_DIRECTION = 1e100
_NO_STEP = 1e-200


class RayHits(NamedTuple):
    """End points of rays.

    Distances are in units of the direction's length: metres for unit directions.

    Attributes:
        voxel: int32 [G, O, D, 3], index (x, y, z) of the first occupied voxel. Without a hit, the
            last voxel inside the grid (within `max_distance`); (-1, -1, -1) if the ray misses the
            grid.
        hit: bool [G, O, D], whether that voxel is occupied.
        t_enter: dtype of the origins [G, O, D], distance at which the ray enters that voxel; 0 if
            the ray starts in it or misses the grid.
        t_exit: dtype of the origins [G, O, D], distance at which the ray leaves that voxel; 0 if
            the ray misses the grid.
        face: int8 [G, O, D], outward normal of the entry face: 0 -x, 1 +x, 2 -y, 3 +y, 4 -z,
            5 +z; -1 if the ray starts in the voxel or misses the grid.
    """

    voxel: Tensor
    hit: Tensor
    t_enter: Tensor
    t_exit: Tensor
    face: Tensor


class OccupancyPyramid:
    """Occupancy bit masks of grids in three levels, for repeated calls of `ray_cast`.

    The pyramid refers to `grids` and does not copy them. After changing labels in place, call
    `update` with the changed box.

    Args:
        grids: uint8 [G, X, Y, Z], contiguous labels.
        empty_label: label of empty voxels.

    Raises:
        ValueError: `grids` is not a contiguous uint8 [G, X, Y, Z] tensor.
    """

    def __init__(self, grids: Tensor, empty_label: int) -> None:
        _check_grids(grids)
        if not grids.is_contiguous():
            raise ValueError("grids must be contiguous, call .contiguous() first")
        self.grids = grids
        self.empty_label = empty_label
        # The reference implementation reads the labels instead.
        is_native = runs_natively("occupancy_masks", grids)
        self.masks = native("occupancy_masks")(grids, empty_label) if is_native else None

    def update(self, lower: Sequence[int], upper: Sequence[int]) -> None:
        """Update the masks after label changes in the box `lower <= (x, y, z) < upper`."""
        if self.masks is not None:
            native("occupancy_masks_update_")(
                self.masks, self.grids, self.empty_label, list(lower), list(upper)
            )


def ray_cast(
    grids: Tensor | OccupancyPyramid,
    origins: Tensor,
    directions: Tensor,
    grid_min: Sequence[float],
    voxel_size: Sequence[float],
    empty_label: int,
    max_distance: float = math.inf,
) -> RayHits:
    """Find the first occupied voxel along each ray, for all pairs of origins and directions.

    A ray from inside the grid starts in the voxel of its origin (truncated coordinates). A ray from
    outside enters through the bounding box. A ray with a non-finite origin or direction, a zero
    direction, or an origin more than 1e9 voxels away counts as missing the grid. Arithmetic is in
    float64 for all dtypes.

    Args:
        grids: uint8 [G, X, Y, Z] labels, or an `OccupancyPyramid` with the same `empty_label`.
        origins: float32 or float64 [O, 3], metres, in the frame of the grid.
        directions: [D, 3] for all origins or [O, D, 3] per origin, same dtype, any length.
        grid_min: lower corner of the grid (x, y, z), metres.
        voxel_size: edge lengths of a voxel (x, y, z), metres.
        empty_label: label of empty voxels.
        max_distance: largest distance, in units of the direction's length.

    Returns:
        The end of each ray, see `RayHits`.

    Raises:
        ValueError: a shape, dtype or size does not fit.
        ExtensionError: the native extension is not built.
    """
    return _ray_cast(
        grids, origins, directions, grid_min, voxel_size, empty_label, max_distance, True
    )


def _ray_cast(
    grids: Tensor | OccupancyPyramid,
    origins: Tensor,
    directions: Tensor,
    grid_min: Sequence[float],
    voxel_size: Sequence[float],
    empty_label: int,
    max_distance: float,
    skip_empty: bool,
) -> RayHits:
    """Cast rays like `ray_cast`; tests and benchmarks can disable the skipping of empty space."""
    labels = grids.grids if isinstance(grids, OccupancyPyramid) else grids
    _check_arguments(labels, origins, directions, grid_min, voxel_size)
    if isinstance(grids, OccupancyPyramid):
        if grids.empty_label != empty_label:
            raise ValueError(
                f"the pyramid was built with empty_label={grids.empty_label}, got {empty_label}"
            )
        masks = grids.masks
    elif runs_natively("ray_cast", labels):
        masks = native("occupancy_masks")(labels, empty_label)
    else:
        masks = None
    if masks is None:
        return ray_cast_reference(
            labels, origins, directions, grid_min, voxel_size, empty_label, max_distance
        )
    return RayHits(
        *native("ray_cast")(
            masks,
            list(labels.shape[1:]),
            origins,
            directions,
            [float(value) for value in grid_min],
            [float(value) for value in voxel_size],
            float(max_distance),
            skip_empty,
        )
    )


def ray_cast_reference(
    grids: Tensor,
    origins: Tensor,
    directions: Tensor,
    grid_min: Sequence[float],
    voxel_size: Sequence[float],
    empty_label: int,
    max_distance: float = math.inf,
) -> RayHits:
    """Compute `ray_cast` in plain torch, one voxel per step for all rays (reference
    implementation).
    """
    _check_arguments(grids, origins, directions, grid_min, voxel_size)
    shape = (grids.shape[0], origins.shape[0], directions.shape[-2])
    minimum = torch.tensor(grid_min, dtype=torch.float64, device=grids.device)
    edge = torch.tensor(voxel_size, dtype=torch.float64, device=grids.device)
    size = torch.tensor(grids.shape[1:], dtype=torch.float64, device=grids.device)
    origin = ((origins.double() - minimum) / edge)[None, :, None].expand(*shape, 3).reshape(-1, 3)
    direction = (directions.double() / edge).expand(*shape, 3).reshape(-1, 3)
    grid_index = torch.arange(shape[0], device=grids.device).repeat_interleave(shape[1] * shape[2])

    walk = _Walk(origin, direction, size, max_distance)
    walk.enter_grid()
    hit = torch.zeros(len(origin), dtype=torch.bool, device=grids.device)
    active = walk.valid.clone()
    while bool(active.any()):
        x, y, z = walk.voxel[active].long().unbind(-1)
        hit[active] = grids[grid_index[active], x, y, z] != empty_label
        active &= ~hit
        active &= walk.step_once(active)
    t_enter, t_exit, face = walk.ends()

    voxel = torch.where(walk.valid[:, None], walk.voxel, -1.0)
    dtype = origins.dtype
    return RayHits(
        voxel.int().reshape(*shape, 3),
        hit.reshape(shape),
        t_enter.to(dtype).reshape(shape),
        t_exit.to(dtype).reshape(shape),
        face.reshape(shape),
    )


class _Walk:
    """State of R rays. Indices and distances are float64, in voxels."""

    def __init__(self, origin: Tensor, direction: Tensor, size: Tensor, max_t: float) -> None:
        finite = (origin.abs() <= _MAX_ORIGIN) & (direction.abs() <= _MAX_DIRECTION)
        origin = torch.where(finite, origin, 0.0)
        direction = torch.where(finite, direction, 0.0)
        longest = direction.abs().amax(-1)
        self.valid = finite.all(-1) & (longest >= _MIN_DIRECTION) & (max_t >= 0)
        self.step = torch.where(direction.abs() < _NO_STEP, 0.0, direction.sign())
        self.inverse = 1.0 / torch.where(self.step == 0, 0.0, direction)
        # An axis without movement never crosses a boundary: (k + 2) * inf = inf for all k >= -1.
        self.origin = torch.where(self.step == 0, -2.0, origin)
        self.start = torch.minimum(origin.floor().clamp(min=-1.0), size)
        self.voxel = self.start.clone()
        self.size, self.max_t = size, max_t

    def crossing(self, boundary: Tensor) -> Tensor:
        """Return the distance [R, 3] at which each axis crosses `boundary` [R, 3]."""
        return (boundary - self.origin) * self.inverse

    def enter_grid(self) -> None:
        """Move rays from outside to their first voxel; mark rays that miss the grid."""
        below, above = self.voxel < 0, self.voxel >= self.size
        outside = below | above
        looks_away = (below & (self.step <= 0)) | (above & (self.step >= 0))
        t_face = self.crossing(torch.where(below, torch.zeros_like(self.size), self.size))
        t_face = torch.where(outside & ~looks_away, t_face, -1.0)
        t_event = t_face.amax(-1, keepdim=True)
        axes = torch.arange(3, device=t_face.device)
        event_axis = torch.where(t_face == t_event, axes, -1).amax(-1, keepdim=True)
        comes_in = outside.any(-1)

        # Move the other axes one voxel at a time up to the entry.
        waiting = comes_in[:, None] & self.valid[:, None] & ~looks_away.any(-1, keepdim=True)
        entry = torch.where(below, torch.zeros_like(self.size), self.size - 1)
        self.voxel = torch.where(waiting & outside, entry, self.voxel)
        while True:
            t = self.crossing(self.voxel + (self.step > 0))
            earlier = (t < t_event) | ((t == t_event) & (axes < event_axis))
            in_grid = (self.voxel >= 0) & (self.voxel < self.size)
            moves = waiting & earlier & (axes != event_axis) & in_grid
            if not bool(moves.any()):
                break
            self.voxel = torch.where(moves, self.voxel + self.step, self.voxel)
        in_grid = ((self.voxel >= 0) & (self.voxel < self.size)).all(-1)
        self.valid &= in_grid & (~comes_in | (t_event[:, 0] <= self.max_t))

    def step_once(self, active: Tensor) -> Tensor:
        """Move the `active` rays by one voxel; return which rays [R] are still active."""
        t = self.crossing(self.voxel + (self.step > 0))
        earliest = t.amin(-1, keepdim=True)
        axes = torch.arange(3, device=t.device)
        axis = torch.where(t == earliest, axes, 3).amin(-1, keepdim=True)
        following = torch.where(axes == axis, self.voxel + self.step, self.voxel)
        goes_on = ((following >= 0) & (following < self.size)).all(-1)
        goes_on &= active & (earliest[:, 0] <= self.max_t)
        self.voxel = torch.where(goes_on[:, None], following, self.voxel)
        return goes_on

    def ends(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return `t_enter`, `t_exit` (float64) and `face` (int8) of the current voxels, [R]."""
        moved = self.voxel != self.start
        t_in = self.crossing(self.voxel + (self.step < 0))
        t_in = torch.where(moved, t_in, -math.inf)
        latest = t_in.amax(-1, keepdim=True)
        axes = torch.arange(3, device=t_in.device)
        axis = torch.where((t_in == latest) & moved, axes, -1).amax(-1, keepdim=True)
        backward = (self.step < 0).long().gather(1, axis.clamp(min=0))
        entered = moved.any(-1) & self.valid
        face = torch.where(entered, (2 * axis + backward)[:, 0], -1).to(torch.int8)
        t_enter = torch.where(entered, latest[:, 0], 0.0)
        t_exit = self.crossing(self.voxel + (self.step > 0)).amin(-1)
        return t_enter, torch.where(self.valid, t_exit, 0.0), face


def _check_grids(grids: Tensor) -> None:
    if grids.dim() != 4 or grids.dtype != torch.uint8 or 0 in grids.shape[1:]:
        raise ValueError(
            f"grids must be uint8 [G, X, Y, Z] with at least one voxel, got {grids.dtype} "
            f"{list(grids.shape)}"
        )


def _check_arguments(
    grids: Tensor,
    origins: Tensor,
    directions: Tensor,
    grid_min: Sequence[float],
    voxel_size: Sequence[float],
) -> None:
    _check_grids(grids)
    for name, value in (("origins", origins), ("directions", directions)):
        per_origin = name == "directions" and value.shape[:-2] == origins.shape[:1]
        if not (value.dim() == 2 or per_origin) or value.shape[-1] != 3:
            raise ValueError(f"{name} must be [n, 3], got {list(value.shape)}")
        if value.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name} must be float32 or float64, got {value.dtype}")
    if origins.dtype != directions.dtype:
        raise ValueError(
            f"origins and directions must have one dtype, got {origins.dtype} and "
            f"{directions.dtype}"
        )
    if len(grid_min) != 3 or len(voxel_size) != 3 or min(voxel_size) <= 0:
        raise ValueError(
            f"grid_min and voxel_size must have three entries, voxel_size positive ones, got "
            f"{list(grid_min)} and {list(voxel_size)}"
        )


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::occupancy_masks")
    def _(grids: Tensor, empty_label: int) -> Tensor:
        total = 0
        for width in (4, 16, 64):
            total += math.prod(-(-int(n) // width) for n in grids.shape[1:])
        return grids.new_empty((grids.shape[0], total), dtype=torch.int64)

    @torch.library.register_fake("opus::occupancy_masks_update_")
    def _(
        masks: Tensor, grids: Tensor, empty_label: int, lower: list[int], upper: list[int]
    ) -> None:
        return None

    @torch.library.register_fake("opus::ray_cast")
    def _(
        masks: Tensor,
        grid_size: list[int],
        origins: Tensor,
        directions: Tensor,
        grid_min: list[float],
        voxel_size: list[float],
        max_distance: float,
        skip_empty: bool,
    ) -> tuple[Tensor, ...]:
        shape = (masks.shape[0], origins.shape[0], directions.shape[-2])
        return (
            origins.new_empty((*shape, 3), dtype=torch.int32),
            origins.new_empty(shape, dtype=torch.bool),
            origins.new_empty(shape),
            origins.new_empty(shape),
            origins.new_empty(shape, dtype=torch.int8),
        )
