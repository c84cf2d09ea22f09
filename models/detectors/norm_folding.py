"""Folding of batch norms that stay in eval mode during training.

A batch norm in eval mode scales and shifts each channel. If its parameters are folded into the
convolution before it, two passes over the output are saved in the forward pass and three in the
backward pass, and the input of the norm is not stored.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.layers.convolutions import FastConv2d, RestingNorm2d

# Attributes in which torch stores the hooks of a module.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def bare_copy(module: nn.Module) -> nn.Module:
    """Return a copy without hooks, gradients and folded norms."""
    bare = copy.deepcopy(module).requires_grad_(False)
    for part in bare.modules():
        for name in HOOKS:
            getattr(part, name).clear()
    wake_norms([bare])
    return bare


def norms_behind_convolutions(parts: Sequence[nn.Module]) -> dict[nn.Conv2d, _BatchNorm]:
    """Return the norms whose only input is the output of a convolution.

    They are found by running a small image. This does not synchronise with the device.

    Args:
        parts: Bare modules in eval mode, in the order in which they run.
    """
    modules = [module for part in parts for module in part.modules()]
    norms: dict[nn.Conv2d, _BatchNorm] = {}
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # kept alive, so that ids stay unique
    calls: Counter[nn.Module] = Counter()

    def note_convolution(module: nn.Conv2d, _: Any, out: Tensor) -> None:
        calls[module] += 1
        outputs[id(out)] = module, out

    def note_norm(module: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        convolution, _ = outputs.get(id(inputs[0]), (None, None))
        if convolution is not None:
            norms[convolution] = module

    convolutions = [m for m in modules if type(m) in (nn.Conv2d, FastConv2d)]
    hooks = [m.register_forward_hook(note_convolution) for m in convolutions]
    hooks += [m.register_forward_pre_hook(note_norm) for m in modules if isinstance(m, _BatchNorm)]
    run_small(parts)
    for hook in hooks:
        hook.remove()
    return {
        convolution: norm
        for convolution, norm in norms.items()
        if calls[convolution] == calls[norm] == 1 and norm.running_mean is not None
    }


@torch.no_grad()
def run_small(parts: Sequence[nn.Module]) -> Sequence[Tensor]:
    """Return the feature maps of a small image."""
    weight = next(parts[0].parameters())
    # computed on the device, so that nothing is copied to it
    out: Any = torch.arange(3 * 64 * 64, device=weight.device).mul(0.7).sin().view(1, 3, 64, 64)
    out = out.to(weight.dtype)
    with torch.autocast(weight.device.type, enabled=False):
        for part in parts:
            out = part(out)
    return out


def rest_norms(parts: Sequence[nn.Module]) -> None:
    """Fold norms in eval mode into the convolutions before them.

    Args:
        parts: Modules in training mode, in the order in which they run; changed in place.
    """
    wake_norms(parts)
    names = {
        module: (number, name)
        for number, part in enumerate(parts)
        for name, module in part.named_modules()
    }
    if not any(type(m) is nn.BatchNorm2d and not m.training for m in names):
        return
    copies = [bare_copy(part) for part in parts]
    for part in copies:
        part.eval()  # mmdet's networks do not return themselves
    found = norms_behind_convolutions(copies)
    originals = {place: module for module, place in names.items()}
    same = {
        module: originals[number, name]
        for number, part in enumerate(copies)
        for name, module in part.named_modules()
    }
    for convolution, norm in found.items():
        own, own_norm = same[convolution], same[norm]
        is_known = type(own) is FastConv2d and type(own_norm) is nn.BatchNorm2d
        # activation checkpointing replaces the forward of a module: such norms are not folded
        if is_known and not own_norm.training and "forward" not in vars(own_norm):
            own_norm.__class__ = RestingNorm2d
            own.norms = (own_norm,)  # type: ignore[assignment]


def wake_norms(parts: Sequence[nn.Module]) -> None:
    """Undo `rest_norms`."""
    for part in parts:
        for module in part.modules():
            if isinstance(module, FastConv2d):
                module.norms = ()
            elif isinstance(module, RestingNorm2d):
                module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
