"""The image network as evaluation runs it: without batch norms, laid out once, in a precision.

Dimension letters: I images, C channels, h, w size of a feature map, H, W image size.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import fuse_conv_bn
from torch import Tensor, nn

from models.cuda_graphs import CapturedFunction
from models.errors import ModelConfigError

_NAMES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Where torch keeps the hooks of a module.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def check_eval_dtype(name: str | None) -> None:
    """Refuse a name that is no precision of the evaluation.

    Raises:
        ModelConfigError: If it is none.
    """
    if name not in (None, "auto", *_NAMES):
        raise ModelConfigError(
            f"eval_dtype is {name!r}: set None, 'auto' or one of {', '.join(map(repr, _NAMES))}."
        )


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions that multiply bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch names no public way to ask for the instructions of a CPU
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolve_eval_dtype(name: str | None, parameter: Tensor) -> torch.dtype:
    """Return the precision that a name means for a network with a parameter like this.

    Raises:
        ModelConfigError: If the device has no such arithmetic.
    """
    check_eval_dtype(name)
    device = parameter.device
    if name is None:
        return parameter.dtype
    if name == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    if name == "float16" and device.type == "cpu":
        raise ModelConfigError(
            "eval_dtype='float16' is for GPUs: set eval_dtype='auto' to run on the CPU."
        )
    if name == "bfloat16" and not multiplies_bfloat16(device):
        raise ModelConfigError(
            f"eval_dtype='bfloat16', which this device ({device.type}) does not multiply natively: "
            "set eval_dtype='auto', which takes it where it is faster."
        )
    return _NAMES[name]


class EvaluationNetwork:
    """Modules that are run one after the other, copied and prepared for evaluation.

    Batch norms become a part of the convolutions before them, weights lie channels-last, and all
    parameters have one precision. Folding assumes that a batch norm that is defined behind a
    convolution also follows it; it is left out where that changes the result. The copies call the
    hooks of the originals. They are no submodules, so that state dicts do not hold them.

    Args:
        parts: Modules in eval mode.
        dtype: Name of the precision, see ``resolve_eval_dtype``.
        compile_options: Arguments of ``torch.compile``; None compiles nothing.
        cuda_graphs: Whether to capture the modules as CUDA graphs on a GPU. Hooks then see the
            captured call alone.
    """

    @torch.no_grad()
    def __init__(
        self,
        parts: Sequence[nn.Module],
        dtype: str | None = None,
        compile_options: Mapping[str, Any] | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self._originals = [
            tensor
            for part in parts
            for tensor in itertools.chain(part.parameters(), part.buffers())
        ]
        self._versions = [tensor._version for tensor in self._originals]
        with torch.inference_mode(False):
            self._parts = _folded([_bare_copy(part) for part in parts])
            for part, original in zip(self._parts, parts, strict=True):
                part.to(resolve_eval_dtype(dtype, self._originals[0]))
                for weight in part.parameters():
                    if weight.ndim == 4:
                        weight.data = weight.contiguous(memory_format=torch.channels_last)
                _share_hooks(original, part)
        if compile_options is not None:
            for part in self._parts:
                part.compile(**compile_options)
        self._dtype = next(self._parts[0].parameters()).dtype
        self._captured: CapturedFunction | None = None
        if cuda_graphs:
            self._captured = CapturedFunction(
                self._run, copies_results=False, most_graphs=4, copied_bytes=None
            )

    @property
    def is_current(self) -> bool:
        """Whether the weights are those that were copied.

        What is written through ``parameter.data`` is not seen.
        """
        return all(
            tensor._version == version
            for tensor, version in zip(self._originals, self._versions, strict=True)
        )

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Map images ``[I, 3, H, W]`` to feature maps ``[I, C, h, w]``."""
        if self._captured is not None:
            return [level for level in self._captured(images) if level is not None]
        return self._run(images)

    def _run(self, images: Tensor) -> Sequence[Tensor]:
        out: Any = images.to(self._dtype)
        for part in self._parts:
            out = part(out)
        return out


def _bare_copy(module: nn.Module) -> nn.Module:
    """Return a copy without hooks and gradients."""
    bare = copy.deepcopy(module).requires_grad_(False)
    for part in bare.modules():
        for name in _HOOKS:
            getattr(part, name).clear()
    return bare


def _folded(parts: list[nn.Module]) -> list[nn.Module]:
    """Return modules with their batch norms folded, or the same if that changes their results."""
    try:
        folded = [fuse_conv_bn(copy.deepcopy(part)).requires_grad_(False) for part in parts]
    except (RuntimeError, TypeError):  # of other sizes, or without weights
        return parts
    pairs = zip(_tried(folded), _tried(parts), strict=True)
    allowed = [
        ((a - b).abs() <= 1e-2 * b.abs() + 1e-3 * (b.abs().max() + 1e-12)).all() for a, b in pairs
    ]
    return folded if bool(torch.stack(allowed).all()) else parts  # one wait for a device


def _tried(parts: Sequence[nn.Module]) -> Sequence[Tensor]:
    """Return the feature maps of a small random image."""
    weight = next(parts[0].parameters())
    generator = torch.Generator().manual_seed(0)
    out: Any = torch.randn(1, 3, 64, 64, generator=generator).to(weight)
    with torch.autocast(weight.device.type, enabled=False):
        for part in parts:
            out = part(out)
    return out


def _share_hooks(original: nn.Module, twin: nn.Module) -> None:
    """Have the modules of a copy call the hooks of the originals, also those of later."""
    twins = dict(twin.named_modules())
    for name, module in original.named_modules():
        if name in twins:
            for attribute in _HOOKS:
                setattr(twins[name], attribute, getattr(module, attribute))
