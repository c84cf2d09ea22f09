"""Configs of the entry points: read, merged with the command line, resolved and checked."""

from __future__ import annotations

import copy
import importlib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from scripts.runtime.config_files import ConfigChain, imported_names, read_chain, read_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.parts import LIBRARIES, REGISTRIES, Part, arguments_of, walk
from scripts.runtime.runner_keys import RUNNER_KEYS
from scripts.runtime.sections import check_sections
from scripts.runtime.settings import (
    Setting,
    Written,
    check_agreement,
    did_you_mean,
    refuse_unread,
    resolve_settings,
    setting_names,
    without_lidar_steps,
)
from scripts.runtime.value_types import annotations_of, fits, name_of

OPTIONS_SOURCE = "--cfg-options"
# Names that any config may use, even without a base file of this project.
_OWN_MODULES = ("models.register", "loaders.register", "scripts.runtime.register")


@dataclass(frozen=True)
class LoadedConfig:
    """A resolved config, and the origin of its shared values.

    Attributes:
        cfg: The resolved config.
        settings: Its settings by name, with the parts that read them.
        sources: Maps the name of a setting to the file that sets it, or to `--cfg-options`.
    """

    cfg: Config
    settings: dict[str, Setting]
    sources: dict[str, str]


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config file, apply command-line options, and resolve its settings.

    Args:
        path: An MMEngine config.
        options: `--cfg-options`, dotted keys to values.

    Returns:
        The resolved config: every part has its values.

    Raises:
        ConfigError: The file does not exist or is not a config, nothing reads a key or a setting, a
            module cannot be imported, or values contradict each other.
    """
    return load(path, options).cfg


def load(path: str | Path, options: Mapping[str, Any] | None = None) -> LoadedConfig:
    """Load a config as `load_config` does, and record the origin of its settings."""
    for name in _OWN_MODULES:
        importlib.import_module(name)
    cfg = read_config(path)
    chain = read_chain(path)
    options = dict(options or {})
    if options:
        _lay_over(cfg, options, path)
    import_modules(cfg, path)
    sources = {name: _display(source) for name, source in chain.sources.items()}
    sources |= {key.split(".", 1)[0]: OPTIONS_SOURCE for key in options}
    settings = resolve_settings(cfg)
    _refuse_unread(settings, options, chain, path)
    # Remove settings that the parts now contain: the written config must be readable again.
    for name, setting in settings.items():
        if not setting.is_effective or setting.is_part:
            cfg.pop(name)
    check_parts(cfg)
    check_agreement(cfg)
    check_sections(cfg)
    return LoadedConfig(cfg, settings, sources)


def _display(path: Path) -> str:
    path = Path(os.path.normpath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _lay_over(cfg: Config, options: Mapping[str, Any], path: str | Path) -> None:
    """Merge `--cfg-options` into a config that is not resolved yet."""
    for key in options:
        _make_room(cfg, key.split("."))
    try:
        cfg.merge_from_dict(dict(options))
    except (KeyError, TypeError, AssertionError, IndexError, ValueError, AttributeError) as error:
        message = error.args[0] if error.args else type(error).__name__
        raise ConfigError(f"--cfg-options does not fit {path}: {message}") from error


def _make_room(cfg: Any, keys: list[str]) -> None:
    """Create the dicts that an option refers to and that settings would fill in only later.

    `test_dataloader.dataset.pipeline.0.x` refers to the first step of the shared pipeline, but only
    in the test split.
    """
    if keys[0] in ("test_dataloader", "test_evaluator") and len(keys) > 1 and keys[0] not in cfg:
        base = cfg.get(keys[0].replace("test_", "val_"))
        if base is not None:
            cfg[keys[0]] = copy.deepcopy(base)
    node: Any = cfg.get(keys[0])
    for key, following in itertools.pairwise(keys[1:]):
        if isinstance(node, (list, tuple)):
            if not key.isdigit() or int(key) >= len(node):
                return
            node = node[int(key)]
            continue
        if not isinstance(node, dict):
            return
        if key not in node and following.isdigit() and isinstance(cfg.get(key), list):
            shared = copy.deepcopy(cfg[key])
            has_lidar = key != "pipeline" or cfg.get("use_lidar", False)
            node[key] = shared if has_lidar else without_lidar_steps(shared)
        if key not in node:
            return
        if node[key] is None:  # MMEngine cannot merge a dict into None
            node.pop(key)
            return
        node = node[key]


def import_modules(cfg: Config, path: str | Path) -> None:
    """Import the modules that a config names in `custom_imports`.

    Errors raised by the code of such a module keep their traceback.

    Raises:
        ConfigError: A module, or one that it imports, does not exist.
    """
    for name in imported_names(cfg):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if cfg.custom_imports.get("allow_failed_imports", False):
                continue
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                raise ConfigError(
                    f"config {path}: custom_imports names the module '{name}', which is not found: "
                    "put its folder on PYTHONPATH, or correct the name"
                ) from error
            raise ConfigError(
                f"config {path}: the module '{name}' of custom_imports needs the library "
                f"'{error.name}', which is not installed: install it in this environment"
            ) from error
        except ImportError as error:
            if cfg.custom_imports.get("allow_failed_imports", False):
                continue
            raise ConfigError(
                f"config {path}: the module '{name}' of custom_imports cannot be imported: {error}"
            ) from error


def _refuse_unread(
    settings: Mapping[str, Setting],
    options: Mapping[str, Any],
    chain: ConfigChain,
    path: str | Path,
) -> None:
    own_names = {name: f"config {path}" for name in chain.own_names}
    own_names |= {key.split(".", 1)[0]: OPTIONS_SOURCE for key in options}
    variables = chain.variables - {key.split(".", 1)[0] for key in options}
    refuse_unread(settings, Written(own_names, variables, _known_arguments(), set(options)))


def _known_arguments() -> frozenset[str]:
    """Return the arguments of all parts that this project registers, and of MMEngine's loops."""
    names: set[str] = {"batch_size", "num_workers"}
    for registry in REGISTRIES:
        for target in registry.module_dict.values():
            module = getattr(target, "__module__", "").split(".")
            is_ours = module[0] in ("models", "loaders", "scripts")
            if is_ours or module[:2] == ["mmengine", "runner"]:
                names |= set(arguments_of(target).names)
    return frozenset(names)


def check_parts(cfg: Config) -> None:
    """Check the type and the keys of every part.

    Raises:
        ConfigError: A type is not registered, or the class does not take a key.
    """
    for node in walk(cfg):
        part = node.part
        if part.target is None:
            names = [name for registry in REGISTRIES for name in registry.module_dict]
            raise ConfigError(
                f"{part.place}.type is '{part.type_name}', which is not registered"
                f"{did_you_mean(part.type_name, names)}: check the name and custom_imports"
            )
        for key in part.unknown_keys():
            raise ConfigError(
                f"{part.place} ({part.type_name}) does not take the key '{key}'"
                f"{did_you_mean(key, part.arguments.names)}; it takes "
                f"{', '.join(part.arguments.names) or 'none'}"
            )
        _check_types(part)


# Library modules with reliable annotations.
_ANNOTATED_LIBRARIES = ("torch.optim.", "mmengine.optim.scheduler.", "mmengine.hooks.")


def _check_types(part: Part) -> None:
    """Check values against annotations, for classes with reliable annotations.

    Raises:
        ConfigError: A value has the wrong type; the message gives both types.
    """
    if part.target is None:
        return
    module = f"{part.target.__module__}."
    if module.split(".")[0] in LIBRARIES and not module.startswith(_ANNOTATED_LIBRARIES):
        return
    for name, annotation in annotations_of(part.target).items():
        if name in part.config and not fits(part.config[name], annotation):
            raise ConfigError(
                f"{part.place}.{name} ({part.type_name}) is {part.config[name]!r}, expected "
                f"{name_of(annotation)}"
            )


__all__ = [
    "OPTIONS_SOURCE",
    "RUNNER_KEYS",
    "LoadedConfig",
    "check_parts",
    "import_modules",
    "load",
    "load_config",
    "setting_names",
]
