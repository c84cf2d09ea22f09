"""Orders of the axes in which libraries store the weight of a sparse convolution."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from torch import Size, Tensor


class SparseLayout(Enum):
    """Order of the axes of a sparse convolution's weight: the permutation from this project's.

    This project stores `[out, k0, k1, k2, in]`, kernels of one voxel too. spconv 2 stores these
    so as well, but reads their memory as `[in, out]` when it computes: a model with such layers
    that was trained there has to be converted by hand. No published model has any.
    """

    SPCONV2 = (0, 1, 2, 3, 4)  # [out, k0, k1, k2, in]: spconv >= 2.2 and here
    SPCONV1 = (1, 2, 3, 4, 0)  # [k0, k1, k2, in, out]: spconv 1, mmcv, MMCV-1 releases
    SPCONV2_NATIVE = (1, 2, 3, 0, 4)  # [k0, k1, k2, out, in]: spconv 2.0 and 2.1, "native" only

    def store(self, weight: Tensor) -> Tensor:
        """Convert a weight of this project to the layout."""
        return weight.permute(self.value)

    def load(self, weight: Tensor) -> Tensor:
        """Convert a weight of the layout to this project's."""
        return weight.permute(tuple(self.value.index(axis) for axis in range(5)))

    def shape(self, own: Size) -> Size:
        """Return the shape in this layout of a weight that has the shape `own` here."""
        return Size(own[axis] for axis in self.value)


def common_layout(weights: Mapping[str, Tensor], shapes: Mapping[str, Size]) -> SparseLayout | None:
    """Return the first layout, in the order of `SparseLayout`, that all weights fit.

    Args:
        weights: State dict.
        shapes: Shapes in this project's layout by key; keys that `weights` lacks do not count.

    Returns:
        The layout; None if the weights fit none together.
    """
    present = {key: shape for key, shape in shapes.items() if key in weights}
    for layout in SparseLayout:
        if all(weights[key].shape == layout.shape(shape) for key, shape in present.items()):
            return layout
    return None


def converted(weights: Mapping[str, Tensor], shapes: Mapping[str, Size]) -> dict[str, Tensor]:
    """Return those of the weights at the keys of `shapes` that have to change, converted.

    Weights that fit no layout together are left out.
    """
    layout = common_layout(weights, shapes)
    if layout is None or layout is SparseLayout.SPCONV2:
        return {}
    return {key: layout.load(weights[key]).contiguous() for key in shapes.keys() & weights.keys()}
