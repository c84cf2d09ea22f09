"""Layouts in which sparse-convolution libraries store their weights, and conversion both ways.

The models keep spconv 2's layout, as the published OPUS checkpoints do. All other parameters have
one layout everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from torch import Size, Tensor, nn

from models.layers import SparseConv3d, SubMConv3d


class SparseLayout(Enum):
    """Order of the axes of a sparse convolution's weight: the permutation from this project's.

    This project stores ``[out, k0, k1, k2, in]``, kernels of one voxel too. spconv 2 stores these
    so as well, but reads their memory as ``[in, out]`` when it computes: a model with such layers
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
        """Return the shape in this layout of a weight that has the shape ``own`` here."""
        return Size(own[axis] for axis in self.value)


def sparse_weight_shapes(model: nn.Module) -> dict[str, Size]:
    """Return name and shape of all sparse-convolution weights of a model."""
    return {
        f"{name}.weight": module.weight.shape
        for name, module in model.named_modules()
        if isinstance(module, (SparseConv3d, SubMConv3d))
    }


def detect_layout(weights: Mapping[str, Tensor], model: nn.Module) -> SparseLayout | None:
    """Tell the layout of a state dict.

    A file has one layout, so all weights decide together: a weight with as many outputs as inputs
    fits several.

    Returns:
        The first layout, in the order of ``SparseLayout``, that all sparse weights fit; None if
        they fit none: the weights are of another model.
    """
    shapes = {key: shape for key, shape in sparse_weight_shapes(model).items() if key in weights}
    for layout in SparseLayout:
        if all(weights[key].shape == layout.shape(shape) for key, shape in shapes.items()):
            return layout
    return None


def to_own_layout(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict for ``model`` with sparse weights in this project's layout.

    Weights that fit no layout are left as they are.
    """
    layout = detect_layout(weights, model)
    own = dict(weights)
    if layout is not None and layout is not SparseLayout.SPCONV2:
        for key in sparse_weight_shapes(model).keys() & own.keys():
            own[key] = layout.load(own[key]).contiguous()
    return own


def to_layout(model: nn.Module, layout: SparseLayout) -> dict[str, Tensor]:
    """Return the state dict of a model with sparse weights in a library's layout."""
    weights = dict(model.state_dict())
    for key in sparse_weight_shapes(model):
        weights[key] = layout.store(weights[key]).contiguous()
    return weights
