"""Axis orders that libraries use for the weight of a sparse convolution."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from torch import Size, Tensor


class SparseLayout(Enum):
    """Axis order of a sparse convolution's weight, as a permutation of this project's order.

    This project stores `[out, k0, k1, k2, in]`, also for kernels of one voxel. spconv 2 stores the
    same shape for these kernels, but computes with their memory as `[in, out]`. A model with such
    layers that was trained with spconv 2 must be converted by hand. No published model has any.
    """

    SPCONV2 = (0, 1, 2, 3, 4)  # [out, k0, k1, k2, in]: spconv >= 2.2 and here
    SPCONV1 = (1, 2, 3, 4, 0)  # [k0, k1, k2, in, out]: spconv 1, mmcv, MMCV-1 releases
    SPCONV2_NATIVE = (1, 2, 3, 0, 4)  # [k0, k1, k2, out, in]: spconv 2.0 and 2.1, "native" only

    def store(self, weight: Tensor) -> Tensor:
        """Convert a weight from this project's layout to this one."""
        return weight.permute(self.value)

    def load(self, weight: Tensor) -> Tensor:
        """Convert a weight from this layout to this project's."""
        return weight.permute(tuple(self.value.index(axis) for axis in range(5)))

    def shape(self, own: Size) -> Size:
        """Return the shape in this layout of a weight with shape `own` in this project's."""
        return Size(own[axis] for axis in self.value)


def common_layout(weights: Mapping[str, Tensor], shapes: Mapping[str, Size]) -> SparseLayout | None:
    """Return the first layout, in the order of `SparseLayout`, that fits all weights.

    Args:
        weights: State dict.
        shapes: Shapes in this project's layout by key; keys missing in `weights` are ignored.

    Returns:
        The layout; None if no layout fits all weights.
    """
    present = {key: shape for key, shape in shapes.items() if key in weights}
    for layout in SparseLayout:
        if all(weights[key].shape == layout.shape(shape) for key, shape in present.items()):
            return layout
    return None


def converted(weights: Mapping[str, Tensor], shapes: Mapping[str, Size]) -> dict[str, Tensor]:
    """Convert the weights at the keys of `shapes`; return only those that change.

    If no layout fits all weights, none are returned.
    """
    layout = common_layout(weights, shapes)
    if layout is None or layout is SparseLayout.SPCONV2:
        return {}
    return {key: layout.load(weights[key]).contiguous() for key in shapes.keys() & weights.keys()}
