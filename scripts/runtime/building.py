"""Building of a config's parts, with errors that name the part and the key."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from models.errors import UserError
from scripts.runtime.errors import ConfigError
from scripts.runtime.parts import LIBRARIES, REGISTRIES, Part, arguments_of, find_type, walk
from scripts.runtime.replacements import replaced_type
from scripts.runtime.settings import did_you_mean

# Errors with which a library's constructor rejects arguments, that is, values of the config.
_REFUSALS = (ValueError, TypeError, KeyError, AssertionError, NotImplementedError)


@contextmanager
def named_config_keys(cfg: Config) -> Iterator[None]:
    """Convert errors of parts that are built from `cfg` in a context to ConfigErrors about its
    keys.

    Arguments are checked against the signature of a registered class before it is called. Errors of
    this project's and the user's classes are passed on unchanged. If a library's class rejects its
    arguments, the error names the class and its place in the config.
    """
    parts = [node.part for node in walk(cfg.to_dict())]
    before = {registry: registry.build_func for registry in REGISTRIES}

    def checked(build: Callable[..., Any]) -> Callable[..., Any]:
        def checked_build(config: Any, *args: Any, registry: Registry, **kwargs: Any) -> Any:
            target = _check(config, kwargs.get("default_args"), registry, parts)
            try:
                return build(config, *args, registry=registry, **kwargs)
            except _REFUSALS as error:
                if isinstance(error, UserError) or not _is_refusal(error, target):
                    raise
                place = _place_of(config, parts)
                reason = error.args[0] if error.args else type(error).__name__
                raise ConfigError(
                    f"{place} ({_name(target)}) does not accept its settings: {reason}"
                ) from error

        return checked_build

    for registry, build in before.items():
        registry.build_func = checked(build)
    try:
        yield
    finally:
        for registry, build in before.items():
            registry.build_func = build


def _check(config: Any, defaults: Any, registry: Registry, parts: list[Part]) -> Any:
    """Check the arguments of a part against the signature of its class, and return the class.

    Raises:
        ConfigError: An unknown type, an unknown key, or a required key that is missing.
    """
    if not isinstance(config, Mapping):
        return None
    given = {**(defaults or {}), **config}
    kind = given.get("type")
    if kind is None:
        return None
    target = find_type(kind, registry)
    place = _place_of(config, parts)
    if target is None:
        names = [name for each in REGISTRIES for name in each.module_dict]
        raise ConfigError(
            f"{place}.type is '{kind}', which is not registered{did_you_mean(str(kind), names)}: "
            "check the name and custom_imports"
        )
    arguments = arguments_of(target)
    keys = set(given) - {"type", "_scope_"}
    if not inspect.isclass(target) or arguments.takes_any:
        return target
    for key in keys - set(arguments.names):
        if key in config and not _takes_away(registry, key):
            raise ConfigError(
                f"{place} ({_name(target)}) does not take the key '{key}'"
                f"{did_you_mean(key, arguments.names)}; it takes {', '.join(arguments.names)}"
            )
    missing = [name for name in arguments.names if name in arguments.required - keys]
    if missing and not issubclass_of_manager(target):
        raise ConfigError(
            f"{place} ({_name(target)}) lacks the key '{missing[0]}': set it there, or at the top "
            "of the config"
        )
    return target


def issubclass_of_manager(target: type) -> bool:
    """Return whether a class derives from MMEngine's ManagerMixin, which adds a `name`."""
    from mmengine.utils import ManagerMixin

    return issubclass(target, ManagerMixin)


def _takes_away(registry: Registry, key: str) -> bool:
    """Return whether a registry's build function removes a key before it calls the class."""
    return registry.name == "parameter scheduler" and key in (
        "convert_to_iter_based",
        "epoch_length",
    )


def _is_refusal(error: BaseException, target: Any) -> bool:
    """Return whether a library's constructor raised an error about the part's arguments."""
    if target is None or getattr(target, "__module__", "").split(".")[0] not in LIBRARIES:
        return False
    trace = error.__traceback__
    frames = []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    names = [frame.f_code.co_name for frame in frames]
    last = frames[-1].f_globals.get("__name__", "").split(".")[0]
    return "__init__" in names and last in LIBRARIES


def _name(target: Any) -> str:
    return getattr(target, "__name__", str(target))


def _place_of(config: Any, parts: list[Part]) -> str:
    """Return the dotted path of the config's part that is most similar to a dict being built."""
    best, score = "config", 0.0
    for part in parts:
        kind = part.config.get("type")
        if config.get("type") not in (kind, replaced_type(kind)):
            continue
        shared = [key for key in part.config if key in config]
        equal = sum(_same(part.config[key], config[key]) for key in shared)
        rating = (1 + equal) / (1 + len(part.config))
        if rating > score:
            best, score = part.place, rating
    return best


def _same(first: Any, second: Any) -> bool:
    try:
        return bool(first == second)
    except (ValueError, RuntimeError):  # arrays have no single truth value
        return first is second
