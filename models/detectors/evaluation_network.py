"""The image network in evaluation: folded batch norms, channels-last weights, reduced precision.

Dimension letters: I images, C channels, h, w size of a feature map, H, W image size.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.cuda_graphs import CapturedFunction
from models.errors import ModelConfigError

from .norm_folding import HOOKS, bare_copy, norms_behind_convolutions, run_small

_NAMES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def check_eval_dtype(name: str | None) -> None:
    """Check the setting `eval_dtype`.

    Raises:
        ModelConfigError: If it is not a supported precision.
    """
    if name not in (None, "auto", *_NAMES):
        raise ModelConfigError(
            f"eval_dtype is {name!r}: set None, 'auto' or one of {', '.join(map(repr, _NAMES))}."
        )


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions that multiply bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public function for this
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolve_eval_dtype(name: str | None, parameter: Tensor) -> torch.dtype:
    """Return the dtype that a setting selects for a network on the device of `parameter`.

    Raises:
        ModelConfigError: If the device does not support it.
    """
    check_eval_dtype(name)
    device = parameter.device
    if name is None:
        return parameter.dtype
    if name == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    if name == "float16" and device.type == "cpu":
        raise ModelConfigError(
            "eval_dtype='float16' is only for GPUs: set eval_dtype='auto' to run on the CPU."
        )
    if name == "bfloat16" and not multiplies_bfloat16(device):
        raise ModelConfigError(
            f"eval_dtype='bfloat16', which this device ({device.type}) does not multiply natively: "
            "set eval_dtype='auto', which uses it if it is faster."
        )
    return _NAMES[name]


class EvaluationNetwork:
    """Copy of a chain of modules, prepared for evaluation.

    Batch norms are folded into the convolutions before them, weights are channels-last, and all
    parameters have one precision. The copies call the hooks of the originals. They are not
    submodules, so they do not appear in state dicts.

    Args:
        parts: Modules in eval mode.
        dtype: Precision, see `resolve_eval_dtype`.
        compile_options: Arguments of `torch.compile`; None does not compile.
        cuda_graphs: Whether to capture the modules as CUDA graphs on a GPU. Hooks then see the
            call that is captured, not the replays.
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
            self._parts = _folded(parts)
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
        """Whether the weights are unchanged since the copy.

        Changes through `parameter.data` are not detected.
        """
        return all(
            tensor._version == version
            for tensor, version in zip(self._originals, self._versions, strict=True)
        )

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Map images `[I, 3, H, W]` to feature maps `[I, C, h, w]`."""
        if self._captured is not None:
            return [level for level in self._captured(images) if level is not None]
        return self._run(images)

    def _run(self, images: Tensor) -> Sequence[Tensor]:
        out: Any = images.to(self._dtype)
        for part in self._parts:
            out = part(out)
        return out


def _folded(parts: Sequence[nn.Module]) -> list[nn.Module]:
    """Return bare copies of modules in eval mode, with batch norms folded into convolutions.

    This does not synchronise with the device. On the CPU the results are compared, and the norms
    are not folded if they differ.
    """
    folded = [bare_copy(part) for part in parts]
    expected = run_small(folded)
    fused: dict[nn.Module, nn.Module] = {}
    for convolution, norm in norms_behind_convolutions(folded).items():
        fused |= {convolution: fuse_conv_bn_eval(convolution, norm), norm: nn.Identity()}
    for parent in [module for part in folded for module in part.modules()]:
        for name, child in parent.named_children():
            if child in fused:
                setattr(parent, name, fused[child])
    if expected[0].device.type != "cpu":
        return folded
    for a, b in zip(run_small(folded), expected, strict=True):
        if not torch.allclose(a, b, rtol=1e-2, atol=1e-3 * float(b.abs().max() + 1e-12)):
            return [bare_copy(part) for part in parts]
    return folded


def _share_hooks(original: nn.Module, copy: nn.Module) -> None:
    """Let the modules of a copy call the hooks of the originals, including later ones."""
    copies = dict(copy.named_modules())
    for name, module in original.named_modules():
        if name in copies:
            for attribute in HOOKS:
                setattr(copies[name], attribute, getattr(module, attribute))
