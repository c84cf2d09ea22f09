"""Runner options that change how a model computes: activation checkpointing, compilation."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scripts.runtime.errors import ConfigError
from scripts.runtime.settings import did_you_mean

IMAGE_NETWORK = ("img_backbone", "img_neck")
COMPILED_PARTS = ("image", "decoder")
_BatchNorm = nn.modules.batchnorm._BatchNorm


def checkpoint_activations(model: nn.Module, names: Sequence[str] | str) -> None:
    """Make modules store only their inputs, and recompute activations in the backward pass.

    The recomputation draws the same random numbers, and batch norms are updated only in the first
    pass, so that the trained model is the same. (MMEngine's implementation computes no gradient for
    a module whose input needs none, such as the image backbone, and updates batch norms twice.)

    Args:
        model: The model, changed in place.
        names: Names of modules, e.g. `img_backbone.layer3`.

    Raises:
        ConfigError: The model has no such module.
    """
    modules = dict(model.named_modules())
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple)):
        raise ConfigError(f"activation_checkpointing is {names!r}: give a list of module names")
    for name in names:
        if not name or name not in modules:
            raise ConfigError(
                f"activation_checkpointing names '{name}', which is not a module of the model"
                f"{did_you_mean(str(name), modules)}"
            )
        module = modules[name]
        module.forward = functools.partial(_forward, module, module.forward)


def _forward(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _resting_statistics(module)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _resting_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms unchanged."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def compile_parts(model: nn.Module, options: Any) -> bool:
    """Compile parts of a model in place with `torch.compile`.

    The parts are the image network (`'image'`), and the layers of the decoder (`'decoder'`).
    Discretisation and losses work on sets whose size changes with the sample; they are not
    compiled.

    Args:
        model: The model; the names of its parameters stay.
        options: The config's `compile`: True for the image network, or a dict of `parts` and
            arguments of `torch.compile`.

    Returns:
        Whether anything is compiled.

    Raises:
        ConfigError: The options are of another type, or the model has no such part.
    """
    if options is None or options is False:
        return False
    if options is not True and not isinstance(options, Mapping):
        raise ConfigError(f"compile is {options!r}: set True, or dict(arguments of torch.compile)")
    arguments = {} if options is True else dict(options)
    parts = arguments.pop("parts", ("image",))
    unknown = [part for part in parts if part not in COMPILED_PARTS]
    if isinstance(parts, str) or unknown or not parts:
        raise ConfigError(f"compile.parts is {parts!r}: give a list of {list(COMPILED_PARTS)}")
    if "image" in parts:
        _compile_image_network(model, arguments)
    if "decoder" in parts:
        compile_decoder = getattr(model, "compile_decoder", None)
        if not callable(compile_decoder):
            raise ConfigError(
                "compile.parts names the decoder, which the model lacks: leave it out"
            )
        compile_decoder(**arguments)
    return True


def _compile_image_network(model: nn.Module, arguments: Mapping[str, Any]) -> None:
    parts = [getattr(model, name) for name in IMAGE_NETWORK if hasattr(model, name)]
    if not parts:
        raise ConfigError(
            "compile is for models with an image network (img_backbone): leave it out"
        )
    compile_network = getattr(model, "compile_image_network", None)
    if callable(compile_network):  # also what the model evaluates with
        compile_network(**arguments)
    else:
        for part in parts:
            part.compile(**arguments)
