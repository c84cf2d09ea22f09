"""Settings of a config against the annotations of the constructors that take them."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from scripts.runtime.errors import ConfigError

# Libraries whose annotations are not always what their code accepts.
_UNTYPED = ("mmengine", "mmcv", "mmdet", "mmdet3d", "torch", "builtins")


def check_types(cfg: Config) -> None:
    """Refuse settings of another type than their part is annotated with.

    Checks every dict of the config that names a class of this project, or of the user's own,
    against the annotations of its constructor. Modules that the config imports must have been
    imported.

    Raises:
        ConfigError: The first setting that does not fit, with the types that would.
    """
    for where, part in _typed_parts(cfg.to_dict(), ""):
        cls = _class_of(part)
        if cls is None or cls.__module__.partition(".")[0] in _UNTYPED:
            continue
        for key, hint in _annotations(cls).items():
            if key in part and not _fits(part[key], hint):
                raise ConfigError(
                    f"{where}.{key} is {part[key]!r}, but {cls.__name__} takes {_words(hint)}"
                )


def _typed_parts(node: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All dicts with a ``type`` at and below a node, with their dotted paths."""
    if isinstance(node, Mapping):
        if "type" in node:
            yield where, node
        for key, value in node.items():
            yield from _typed_parts(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _typed_parts(value, f"{where}[{index}]")


def _class_of(part: Mapping[str, Any]) -> type | None:
    """The class that a part names, None if it is not registered."""
    from mmengine import registry

    kind = part["type"]
    if not isinstance(kind, str):
        return kind if isinstance(kind, type) else None
    if kind.partition(".")[0] in _UNTYPED:  # of a library, which a look-up would import whole
        return None
    for each in vars(registry).values():
        if isinstance(each, registry.Registry) and isinstance(found := each.get(kind), type):
            return found
    return None


def _annotations(cls: type) -> dict[str, Any]:
    """The annotations of a constructor, and of those that it hands other keywords on to."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is None or base.__module__.partition(".")[0] in _UNTYPED:
            continue
        try:
            hints = typing.get_type_hints(constructor)
        except (NameError, TypeError, AttributeError):  # names that only a type checker sees
            hints = {}
        named = inspect.signature(constructor).parameters
        found = {name: hint for name, hint in hints.items() if name in named} | found
        if all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in named.values()):
            break
    return found


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a config is of an annotated type; True for types that it cannot judge."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is typing.Literal:
        return value in inner
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    kind = origin or hint
    if kind is tuple and inner and inner[-1] is not ...:
        fits = isinstance(value, (list, tuple)) and len(value) == len(inner)
        return fits and all(map(_fits, value, inner))
    if kind in (list, tuple, Sequence):  # a config's lists and tuples stand for each other
        element = inner[0] if inner else Any
        return isinstance(value, (list, tuple)) and all(_fits(each, element) for each in value)
    if kind in (dict, Mapping):
        return isinstance(value, Mapping)
    return True


def _words(hint: Any) -> str:
    """An annotation as a reader of configs knows it."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "").replace("collections.abc.", "")
