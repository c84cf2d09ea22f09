"""Check of config values against the type annotations of constructors."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from torch import Tensor


@cache
def annotations_of(target: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the annotations of the arguments of a class (including its bases) or a function.

    Annotations that cannot be evaluated at run time are omitted.
    """
    functions = [target]
    if isinstance(target, type):
        functions = [vars(base)["__init__"] for base in target.__mro__ if "__init__" in vars(base)]
    hints: dict[str, Any] = {}
    for function in functions:
        try:
            found = typing.get_type_hints(function)
        except (NameError, TypeError, AttributeError):
            continue
        for name, annotation in found.items():
            hints.setdefault(name, annotation)
    return hints


def fits(value: Any, annotation: Any) -> bool:
    """Return whether a value is valid for an annotated argument.

    Lists are accepted for any sequence type, and whole numbers for floats. Unsupported annotations
    accept everything.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (Any, typing.Any) or isinstance(annotation, typing.TypeVar):
        return True
    if annotation is None or annotation is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(fits(value, choice) for choice in arguments)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str, Tensor):
        return isinstance(value, annotation)
    kind = origin or annotation
    if kind in (tuple, list, Sequence, Iterable, set):
        return _fits_sequence(value, kind, arguments)
    if kind in (dict, Mapping):
        return isinstance(value, Mapping)
    return True


def _fits_sequence(value: Any, kind: Any, arguments: tuple[Any, ...]) -> bool:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        # Objects passed by a program: arrays, generators, sets.
        return not isinstance(value, (str, int, float, bool, Mapping, type(None)))
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    return not arguments or all(fits(entry, arguments[0]) for entry in value)


def name_of(annotation: Any) -> str:
    """Return an annotation as source text: `tuple[int, int]`, `float | None`."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")
