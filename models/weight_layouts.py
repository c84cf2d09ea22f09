"""Conversion of a model's state dict between the layouts of sparse-convolution libraries.

The models use spconv 2's layout, like the published OPUS checkpoints. All other parameters have
the same layout in all libraries. The sparse convolutions convert a state dict when they load it,
whichever function is used for loading.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Size, Tensor, nn

from models.layers import SparseConv3d, SparseLayout, SubMConv3d
from models.layers.sparse_layout import common_layout, converted

__all__ = [
    "SparseLayout",
    "detect_layout",
    "sparse_weight_shapes",
    "to_layout",
    "to_own_layout",
]


def sparse_weight_shapes(model: nn.Module) -> dict[str, Size]:
    """Return names and shapes of all sparse-convolution weights of a model."""
    return {
        f"{name}.weight" if name else "weight": module.weight.shape
        for name, module in model.named_modules()
        if isinstance(module, (SparseConv3d, SubMConv3d))
    }


def detect_layout(weights: Mapping[str, Tensor], model: nn.Module) -> SparseLayout | None:
    """Return the layout of a state dict.

    The layout must fit all weights of the file, because a single weight with equal numbers of
    inputs and outputs fits several layouts.

    Returns:
        The first layout, in the order of `SparseLayout`, that fits all sparse weights; None if no
        layout does, because the weights belong to another model.
    """
    return common_layout(weights, sparse_weight_shapes(model))


def to_own_layout(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict for `model` with sparse weights in this project's layout.

    Weights that fit no layout are not changed.
    """
    return {**weights, **converted(weights, sparse_weight_shapes(model))}


def to_layout(model: nn.Module, layout: SparseLayout) -> dict[str, Tensor]:
    """Return the state dict of a model with sparse weights in a library's layout."""
    weights = dict(model.state_dict())
    for key in sparse_weight_shapes(model):
        weights[key] = layout.store(weights[key]).contiguous()
    return weights
