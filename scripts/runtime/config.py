"""Configs of the entry points: loaded, checked, and fitted to the processes and the device."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from scripts.runtime.errors import ConfigError
from scripts.runtime.launch import Launch

# Top-level keys that mmengine's Runner reads and a config need not have.
RUNNER_KEYS = frozenset(inspect.signature(Runner).parameters)

# Fields that `fit_config` sets from a top-level one.
DERIVED_KEYS = {
    "train_dataloader.batch_size": "batch_size",
    "train_cfg.max_epochs": "max_epochs",
    "model.pts_bbox_head.pc_range": "pc_range",
    "model.pts_bbox_head.voxel_size": "voxel_size",
}

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")

_NO_SUCH_KEY = re.compile(r"^([\w.<>]+)\(\) got an unexpected keyword argument '(\w+)'")
_KEY_LACKS = re.compile(r"^([\w.<>]+)\(\) missing \d+ required .*?arguments?: (.*)$")
_NO_SUCH_TYPE = re.compile(r"^'?\"?(\S+) is not in the (\S+) registry")


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config file and lay command-line options over it.

    Args:
        path: An mmengine Python config.
        options: `--cfg-options`, dotted keys to values.

    Returns:
        The merged config.

    Raises:
        ConfigError: No such file, not a config, or an option for a key that no part has.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config {path} does not exist: see configs/ for those that do")
    try:
        cfg = Config.fromfile(str(path))
    except FileNotFoundError as error:
        raise ConfigError(f"config {path} builds upon a missing file: {error}") from None
    except ImportError as error:
        cause = error.__cause__ or error.__context__ or error
        raise ConfigError(f"config {path} cannot import its modules: {cause}") from error
    except (SyntaxError, NameError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from error
    if options:
        _check_options(cfg, options)
        try:
            cfg.merge_from_dict(dict(options))
        except (KeyError, TypeError, AssertionError, IndexError) as error:
            raise ConfigError(f"--cfg-options does not fit {path}: {error}") from None
        if "data_root" in options:
            _move_data(cfg, options["data_root"])
    _set_grid(cfg)
    return cfg


def _check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """A misspelt first component would otherwise make a new key that nobody reads."""
    for key in options:
        head = key.split(".", 1)[0]
        if head not in cfg and head not in RUNNER_KEYS:
            raise ConfigError(
                f"--cfg-options {key}: the config has no key '{head}'{_did_you_mean(head, cfg)}"
            )
    for detail, master in DERIVED_KEYS.items():
        if detail in options and master in cfg:
            raise ConfigError(f"--cfg-options {detail} follows from {master}: set that one")


def _move_data(cfg: Config, data_root: str) -> None:
    """Give all data sets another root: `_base_` files have copied the name when they were read."""
    for name in LOADERS:
        for _, node in _dicts(cfg.get(name)):
            if "data_root" in node:
                node["data_root"] = data_root


def _set_grid(cfg: Config) -> None:
    """Give data sets and model the voxel grid of the top level where that has been changed.

    One field, `voxel_size`, so has a model predict, and be scored, on finer or coarser voxels.
    LiDAR voxels have a size of their own.
    """
    of_data = [node for name in LOADERS for _, node in _dicts(cfg.get(name))]
    of_model = [
        node for where, node in _dicts(cfg.get("model")) if not where.startswith("pts_voxel_layer")
    ]
    for key in ("pc_range", "voxel_size"):
        copies = [node for node in of_data if key in node]
        if key not in cfg or all(list(node[key]) == list(cfg[key]) for node in copies):
            continue
        for node in [*copies, *of_model]:
            if key in node:
                node[key] = cfg[key]


def fit_config(cfg: Config, launch: Launch) -> list[str]:
    """Fit a config to the processes and the device of this run, in place.

    - `batch_size` is the total over all processes: each gets its share.
    - `max_epochs` sets the loop's length and the end of every scheduler that ends with it.
    - A data loader without workers keeps no settings of workers (torch refuses them).
    - On the CPU mixed precision is off (mmengine's AmpOptimWrapper refuses the CPU) and
      the data-parallel wrapper gets no device number.

    Args:
        cfg: The merged config.
        launch: This process among the others.

    Returns:
        Sentences for the log about what was changed.

    Raises:
        ConfigError: The batch size is not divisible by the number of processes.
    """
    notes: list[str] = []
    _divide_batch(cfg, launch)
    _set_epochs(cfg)
    _drop_worker_settings(cfg)
    on_cpu = not torch.cuda.is_available()
    wrapper = cfg.get("optim_wrapper")
    if on_cpu and wrapper is not None and wrapper.get("type") == "AmpOptimWrapper":
        wrapper.type = "OptimWrapper"
        for key in ("loss_scale", "dtype", "use_fsdp"):
            wrapper.pop(key, None)
        notes.append("no GPU: mixed precision is off, training runs in float32")
    if launch.is_distributed:
        cfg.launcher = "pytorch"
        if on_cpu:
            cfg.model_wrapper_cfg = dict(
                type="MMDistributedDataParallel",
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=cfg.get("find_unused_parameters", False),
            )
    return notes


def _divide_batch(cfg: Config, launch: Launch) -> None:
    loader = cfg.get("train_dataloader")
    if loader is None:
        return
    total = cfg.get("batch_size", loader.get("batch_size"))
    if total is None or total < 1:
        raise ConfigError(f"batch_size is {total}: it must be at least 1")
    if total % launch.world_size:
        raise ConfigError(
            f"batch_size {total} (the total over all processes) is not divisible by "
            f"{launch.world_size} processes: change one of them"
        )
    loader.batch_size = total // launch.world_size


def _drop_worker_settings(cfg: Config) -> None:
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = cfg.get(name)
        if loader is not None and not loader.get("num_workers", 0):
            loader.pop("persistent_workers", None)
            loader.pop("prefetch_factor", None)


def _set_epochs(cfg: Config) -> None:
    loop, epochs = cfg.get("train_cfg"), cfg.get("max_epochs")
    if loop is None or epochs is None or loop.get("max_epochs") == epochs:
        return
    if epochs < 1:
        raise ConfigError(f"max_epochs is {epochs}: it must be at least 1")
    written = loop.max_epochs
    schedulers = cfg.get("param_scheduler") or []
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        for key in ("end", "T_max"):
            if scheduler.get("by_epoch", True) and scheduler.get(key) == written:
                scheduler[key] = epochs
    if loop.get("val_interval") == written:
        loop.val_interval = epochs
    loop.max_epochs = epochs


@contextmanager
def named_config_keys(cfg: Config) -> Iterator[None]:
    """While parts are built from `cfg`, turn errors about its keys into ConfigErrors.

    Python says `OPUSHead.__init__() got an unexpected keyword argument 'foo'`; this says where in
    the config that is and what the part does take. An error that no config key explains passes.
    """
    content = cfg.to_dict()  # as it is now: the runner replaces parts of its own copy
    try:
        yield
    except TypeError as error:
        sentence = _explain_arguments(str(error), content)
        if sentence is None:
            raise
        raise ConfigError(sentence) from error
    except KeyError as error:
        sentence = _explain_type(str(error), content)
        if sentence is None:
            raise
        raise ConfigError(sentence) from error


def _dicts(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """All dicts at and below a node of a config, with their dotted paths."""
    if isinstance(node, Mapping):
        yield where, node
        for key, value in list(node.items()):
            yield from _dicts(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _dicts(value, f"{where}[{index}]")


def _parts(node: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All dicts with a `type` below a node of a config, with their dotted paths."""
    return ((where, part) for where, part in _dicts(node) if "type" in part)


def _type_name(part: Mapping[str, Any]) -> str:
    kind = part["type"]
    return kind.rsplit(".", 1)[-1] if isinstance(kind, str) else getattr(kind, "__name__", "?")


def _explain_arguments(message: str, cfg: Mapping[str, Any]) -> str | None:
    unexpected = _NO_SUCH_KEY.match(message)
    if unexpected:
        function, key = unexpected.groups()
        name = function.removesuffix(".__init__").rsplit(".", 1)[-1]
        holders = [(where, part) for where, part in _parts(cfg) if key in part]
        # A part may hand its keys on to a base class, whose name Python then reports.
        exact = [holder for holder in holders if _type_name(holder[1]) == name]
        if not holders:
            return None
        where, part = (exact or holders)[0]
        known = _known_keys(part)
        return (
            f"{where or 'config'} (type {_type_name(part)}) does not know the key '{key}'"
            + _did_you_mean(key, known)
            + (f"; it takes {', '.join(known)}" if known else "")
        )
    lacks = _KEY_LACKS.match(message)
    if lacks:
        function, keys = lacks.groups()
        name = function.removesuffix(".__init__").rsplit(".", 1)[-1]
        for where, part in _parts(cfg):
            if _type_name(part) == name:
                return f"{where or 'config'} (type {name}) lacks the key {keys}"
    return None


def _known_keys(part: Mapping[str, Any]) -> list[str]:
    """Names that a part's constructor takes, by its registered class; empty if unknown."""
    from mmengine.registry import (
        DATASETS,
        HOOKS,
        LOOPS,
        METRICS,
        MODELS,
        OPTIM_WRAPPERS,
        PARAM_SCHEDULERS,
        TRANSFORMS,
    )

    kind = part["type"]
    if isinstance(kind, str):
        registries = (
            MODELS,
            DATASETS,
            TRANSFORMS,
            METRICS,
            HOOKS,
            LOOPS,
            OPTIM_WRAPPERS,
            PARAM_SCHEDULERS,
        )
        kind = next((cls for reg in registries if (cls := reg.get(kind)) is not None), None)
    if kind is None:
        return []
    parameters = inspect.signature(kind).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [parameter.name for parameter in parameters if parameter.kind in named]


def _explain_type(message: str, cfg: Mapping[str, Any]) -> str | None:
    match = _NO_SUCH_TYPE.match(message.strip("\"'"))
    if not match:
        return None
    name, registry = match.groups()
    where = next((where for where, part in _parts(cfg) if part["type"] == name), None)
    if where is None:
        return None
    from mmengine.registry import MODELS

    return (
        f"{where}.type is '{name}', which is not registered ({registry})"
        f"{_did_you_mean(name, MODELS.module_dict)}; check the name and custom_imports"
    )


def _did_you_mean(name: str, candidates: Any) -> str:
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
