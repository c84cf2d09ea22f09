"""The parts of a config: their places, classes and arguments.

A *part* is a dict that a class or a function is built from: every dict with a `type`, and the dicts
whose class MMEngine determines itself (data loaders, loops, the optimiser wrapper).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    EVALUATOR,
    FUNCTIONS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    MODEL_WRAPPERS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    VISBACKENDS,
    VISUALIZERS,
    Registry,
)

# The registries that the Runner builds from, in search order.
REGISTRIES: tuple[Registry, ...] = (
    MODELS, DATASETS, TRANSFORMS, DATA_SAMPLERS, METRICS, EVALUATOR, HOOKS, LOOPS, OPTIM_WRAPPERS,
    OPTIMIZERS, PARAM_SCHEDULERS, VISUALIZERS, VISBACKENDS, LOG_PROCESSORS, MODEL_WRAPPERS,
    FUNCTIONS,
)  # fmt: skip
# Libraries, whose annotations and errors this project does not control.
LIBRARIES = ("mmengine", "mmcv", "mmdet", "mmdet3d", "torch", "torchvision", "builtins")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")

# Top-level keys that contain parts, with the parts' registry.
SECTIONS: dict[str, Registry] = {
    "model": MODELS,
    "data_preprocessor": MODELS,
    "val_evaluator": METRICS,
    "test_evaluator": METRICS,
    "train_cfg": LOOPS,
    "val_cfg": LOOPS,
    "test_cfg": LOOPS,
    "optim_wrapper": OPTIM_WRAPPERS,
    "param_scheduler": PARAM_SCHEDULERS,
    "default_hooks": HOOKS,
    "custom_hooks": HOOKS,
    "visualizer": VISUALIZERS,
    "log_processor": LOG_PROCESSORS,
    "model_wrapper_cfg": MODEL_WRAPPERS,
}
# Keys inside parts whose values belong to another registry than the part itself.
_NESTED: dict[str, Registry] = {
    "dataset": DATASETS,
    "datasets": DATASETS,
    "pipeline": TRANSFORMS,
    "transforms": TRANSFORMS,
    "sampler": DATA_SAMPLERS,
    "batch_sampler": DATA_SAMPLERS,
    "collate_fn": FUNCTIONS,
    "worker_init_fn": FUNCTIONS,
    "metrics": METRICS,
    "optimizer": OPTIMIZERS,
    "vis_backends": VISBACKENDS,
}
# Classes that MMEngine uses for sections without a `type`.
_DEFAULT_TYPES = {
    "optim_wrapper": "OptimWrapper",
    "val_cfg": "ValLoop",
    "test_cfg": "TestLoop",
    "visualizer": "Visualizer",
    "log_processor": "LogProcessor",
    "model_wrapper_cfg": "MMDistributedDataParallel",
}
# Keys that MMEngine removes from a part before it calls the class.
_CONFIG_KEYS = frozenset({"type", "_scope_"})
_REMOVED_KEYS: dict[str, frozenset[str]] = {
    "optim_wrapper": frozenset({"constructor", "paramwise_cfg"}),
    "param_scheduler": frozenset({"convert_to_iter_based", "epoch_length"}),
    "default_hooks": frozenset({"priority"}),
    "custom_hooks": frozenset({"priority"}),
}
_LOADER_KEYS = frozenset({
    "dataset", "sampler", "batch_sampler", "collate_fn", "worker_init_fn", "num_batch_per_epoch",
    "disable_subprocess_warning",
})  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """The arguments of a class or a function.

    Attributes:
        names: All named arguments, in order.
        required: Arguments without a default value.
        takes_any: Whether any other argument is accepted (`**kwargs` that base classes do not
            define).
    """

    names: tuple[str, ...]
    required: frozenset[str] = frozenset()
    takes_any: bool = False


@cache
def arguments_of(target: Callable[..., Any]) -> Arguments:
    """Return the arguments of a class or a function.

    If a constructor has `**kwargs`, the arguments of the base classes' constructors are included,
    since `**kwargs` are usually passed to them.
    """
    functions: list[Callable[..., Any]] = [target]
    if inspect.isclass(target):
        functions = [vars(base)["__init__"] for base in target.__mro__ if "__init__" in vars(base)]
    names: dict[str, None] = {}
    required: set[str] = set()
    for position, function in enumerate(functions):
        if function is object.__init__:
            return Arguments(tuple(names), frozenset(required))
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # a built-in function without a signature
            return Arguments(tuple(names), frozenset(required), takes_any=True)
        if inspect.isclass(target):
            parameters = parameters[1:]  # self
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                if position == 0 and parameter.default is parameter.empty:
                    required.add(parameter.name)
                names.setdefault(parameter.name)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return Arguments(tuple(names), frozenset(required))
    return Arguments(tuple(names), frozenset(required), takes_any=True)


def find_type(kind: Any, registry: Registry) -> Callable[..., Any] | None:
    """Return the class or function that a `type` names; None if it does not exist.

    Args:
        kind: A name in a registry, `scope.name`, a dotted path, or the class itself.
        registry: Registry to search first; the others follow.
    """
    if not isinstance(kind, str):
        return kind if callable(kind) else None
    for candidate in (registry, *REGISTRIES):
        try:
            target = candidate.get(kind)
        except RuntimeError:  # raised by mmengine for a dotted path without a target
            target = None
        if target is not None:
            return target
    return None


@dataclass(frozen=True)
class Part:
    """A part of a config.

    Attributes:
        place: Dotted path to it, such as `model.pts_bbox_head.decoder`.
        config: Its dict in the config (not a copy).
        registry: Registry of its type.
        target: The class or function; None if the type is unknown.
        arguments: The arguments of the target.
        removed_keys: Keys besides the arguments, which MMEngine removes before building.
    """

    place: str
    config: dict[str, Any]
    registry: Registry
    target: Callable[..., Any] | None
    arguments: Arguments
    removed_keys: frozenset[str] = _CONFIG_KEYS

    @property
    def type_name(self) -> str:
        """Name of the class for messages."""
        kind = self.config.get("type", self.target)
        return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))

    def unknown_keys(self) -> list[str]:
        """Return the keys of the dict that the class does not take."""
        if self.target is None or self.arguments.takes_any or "constructor" in self.config:
            return []
        return [
            key
            for key in self.config
            if key not in self.arguments.names and key not in self.removed_keys
        ]


@dataclass(frozen=True)
class Node:
    """A part with its nesting depth, for callers that pass values downwards."""

    part: Part
    depth: int


def walk(cfg: Any) -> Iterator[Node]:
    """Yield the parts of a config, outer parts before inner ones.

    Values that the caller writes into a yielded part are walked too. Dicts under keys that end in
    `_cfg` (`norm_cfg`, `init_cfg`) are not parts; they belong to the surrounding part.

    Args:
        cfg: The config, or a dict with its top-level keys.
    """
    for name in LOADERS:
        loader = cfg.get(name)
        if isinstance(loader, dict):
            yield from _walk_loader(loader, name)
    for name, registry in SECTIONS.items():
        section = cfg.get(name)
        removed = _CONFIG_KEYS | _REMOVED_KEYS.get(name, frozenset())
        if isinstance(section, dict) and name == "default_hooks":
            for key in list(section):
                if isinstance(section[key], dict):
                    yield from _walk_part(section[key], f"{name}.{key}", registry, removed, 0)
        elif isinstance(section, dict):
            default = _DEFAULT_TYPES.get(name)
            yield from _walk_part(section, name, registry, removed, 0, default)
        elif isinstance(section, (list, tuple)):
            for index, entry in enumerate(section):
                if isinstance(entry, dict):
                    yield from _walk_part(entry, f"{name}[{index}]", registry, removed, 0)


def _walk_loader(loader: dict[str, Any], place: str) -> Iterator[Node]:
    from torch.utils.data import DataLoader

    arguments = arguments_of(DataLoader)
    yield Node(Part(place, loader, DATASETS, DataLoader, arguments, _CONFIG_KEYS | _LOADER_KEYS), 0)
    yield from _walk_inside(loader, place, DATASETS, 1)


def _walk_part(
    config: dict[str, Any],
    place: str,
    registry: Registry,
    removed: frozenset[str],
    depth: int,
    default_type: str | None = None,
) -> Iterator[Node]:
    kind = config.get("type", default_type)
    if kind is None:
        return
    target = find_type(kind, registry)
    arguments = Arguments((), takes_any=True) if target is None else arguments_of(target)
    yield Node(Part(place, config, registry, target, arguments, removed), depth)
    yield from _walk_inside(config, place, registry, depth + 1)


def _walk_inside(
    config: dict[str, Any], place: str, registry: Registry, depth: int
) -> Iterator[Node]:
    for key in list(config):
        if not str(key).endswith("_cfg"):
            inner = _NESTED.get(key, registry)
            yield from _walk_value(config[key], f"{place}.{key}", inner, depth)


def _walk_value(value: Any, place: str, registry: Registry, depth: int) -> Iterator[Node]:
    if isinstance(value, dict):
        if "type" in value:
            yield from _walk_part(value, place, registry, _CONFIG_KEYS, depth)
        else:
            yield from _walk_inside(value, place, registry, depth)
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            if isinstance(entry, (dict, list, tuple)):
                yield from _walk_value(entry, f"{place}[{index}]", registry, depth)
