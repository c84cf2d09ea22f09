"""Specification of an ablation: a YAML file with overrides of a config."""

from __future__ import annotations

import pprint
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.errors import does_not_exist
from scripts.runtime.command_line import CHECKOUT
from scripts.runtime.errors import ConfigError

# Entries in the log of a training with a given number of iterations; `read_cost` reads them.
_LOG_ENTRIES = 20
DEFAULT_SCORES = ("occ3d/mIoU", "ray/RayIoU")
Overrides = Mapping[str, Any]


@dataclass(frozen=True)
class Spec:
    """An ablation.

    Attributes:
        name: Name of the file, without its suffix.
        config: Config that all rows start from.
        rows: Maps names to overrides of the config; the others are compared with the first row.
        shared: Overrides of all rows.
        evaluations: Maps names to overrides with which every trained model is scored; a single
            unnamed one if the file has none.
        seeds: Seeds; each row is trained once with each.
        iterations: Length of every training; None for that of the config.
        equal_time: Whether to train each row again whose iterations take another time than those of
            the first row, with the number of iterations that takes as long as the first training.
        data: Name of the data set to make first; None if it exists.
        scores: Names of the scores in `val.py`'s file.
    """

    name: str
    config: Path
    rows: Mapping[str, Overrides]
    shared: Overrides = field(default_factory=dict)
    evaluations: Mapping[str, Overrides] = field(default_factory=lambda: {"": {}})
    seeds: tuple[int, ...] = (0, 1, 2)
    iterations: int | None = None
    equal_time: bool = False
    data: str | None = None
    scores: tuple[str, ...] = DEFAULT_SCORES

    @property
    def base(self) -> str:
        """Name of the first row."""
        return next(iter(self.rows))


_KEYS = {
    "config": "config", "rows": "rows", "all": "shared", "evaluations": "evaluations",
    "seeds": "seeds", "iterations": "iterations", "equal_time": "equal_time", "data": "data",
    "scores": "scores",
}  # fmt: skip


def read_spec(path: Path) -> Spec:
    """Read the file of an ablation.

    Raises:
        ConfigError: The file does not exist or is not YAML, or a key or a value is invalid.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{does_not_exist(path)}: name the YAML file of an ablation") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as YAML: {reason}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} has no keys: it needs `config` and `rows`")
    for key in content:
        if key not in _KEYS:
            raise ConfigError(f"{path} has the unknown key '{key}'; use {', '.join(_KEYS)}")
    for key in ("config", "rows"):
        if not content.get(key):
            raise ConfigError(f"{path} lacks `{key}`")
    values: dict[str, Any] = {_KEYS[key]: value for key, value in content.items()}
    values["name"] = path.stem
    values["config"] = _find_config(path, values["config"])
    for key in ("rows", "evaluations"):
        if key in values:
            values[key] = _named_overrides(path, key, values[key])
    values["shared"] = _top_level(path, "all", values.get("shared"))
    _check_numbers(path, values)
    return Spec(**values)


def _find_config(path: Path, text: Any) -> Path:
    for folder in (Path(), CHECKOUT):
        if isinstance(text, str) and (folder / text).is_file():
            return (folder / text).resolve()
    raise ConfigError(f"{path}: config {does_not_exist(str(text))}: correct `config`")


def _named_overrides(path: Path, key: str, value: Any) -> Mapping[str, Overrides]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key} is {value!r}, expected names with their overrides")
    named = {str(name): _top_level(path, f"{key}.{name}", own) for name, own in value.items()}
    slugs = [slug(name) for name in named]
    if len(set(slugs)) < len(slugs) or not all(slugs):
        raise ConfigError(f"{path}: names in {key} must differ in their letters and digits")
    return named


def _top_level(path: Path, place: str, value: Any) -> dict[str, Any]:
    overrides = _overrides(path, place, value)
    for name in overrides:
        if not re.fullmatch(r"[A-Za-z]\w*", name):  # becomes a name in a config file
            raise ConfigError(f"{path}: {place} has the key '{name}', which no config can have")
    return overrides


def _overrides(path: Path, place: str, value: Any) -> dict[str, Any]:
    """Return overrides with dotted keys split into nested dicts."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {place} is {value!r}, expected keys of the config")
    nested: dict[str, Any] = {}
    for key, own in value.items():
        node = nested
        *parents, last = str(key).split(".")
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{path}: {place} sets '{key}' and a key above it")
        own = _overrides(path, f"{place}.{key}", own) if isinstance(own, dict) else own
        if isinstance(own, dict) and isinstance(node.get(last), dict):
            own = merged(node[last], own)
        node[last] = own
    return nested


def _check_numbers(path: Path, values: dict[str, Any]) -> None:
    def whole(value: Any, low: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    seeds = values.get("seeds", [0, 1, 2])
    if not isinstance(seeds, list) or not seeds or not all(whole(seed, 0) for seed in seeds):
        raise ConfigError(f"{path}: seeds is {seeds!r}, expected a list of whole numbers")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: seeds has one number twice")
    values["seeds"] = tuple(seeds)
    if values.get("iterations") is not None and not whole(values["iterations"], 1):
        raise ConfigError(f"{path}: iterations is {values['iterations']!r}, expected a number >= 1")
    if values.get("equal_time") and values.get("iterations") is None:
        raise ConfigError(f"{path}: equal_time needs iterations, the length of the trainings")
    if not isinstance(values.get("equal_time", False), bool):
        raise ConfigError(f"{path}: equal_time is {values['equal_time']!r}, expected true or false")
    if not isinstance(values.get("data"), str | None):
        raise ConfigError(f"{path}: data is {values['data']!r}, expected the name of a data set")
    scores = values.get("scores", list(DEFAULT_SCORES))
    are_names = isinstance(scores, list) and all(isinstance(name, str) for name in scores)
    if not scores or not are_names:
        raise ConfigError(f"{path}: scores is {scores!r}, expected a list of names")
    values["scores"] = tuple(scores)


def slug(name: str) -> str:
    """Return a name as part of a path."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")


def merged(first: Overrides, second: Overrides) -> dict[str, Any]:
    """Merge overrides, dict by dict; the second take precedence."""
    result = dict(first)
    for key, value in second.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = merged(before, value)
        result[key] = value
    return result


def config_text(base: Path, overrides: Overrides) -> str:
    """Return the text of a config that changes some keys of another one."""
    lines = [f"_base_ = [{str(base)!r}]"]
    lines += [
        f"{key} = {pprint.pformat(dict_of(value), sort_dicts=False, width=96)}"
        for key, value in overrides.items()
    ]
    return "\n".join(lines) + "\n"


def dict_of(value: Any) -> Any:
    """Return a value as plain dicts and lists."""
    if isinstance(value, Mapping):
        return {key: dict_of(own) for key, own in value.items()}
    return [dict_of(own) for own in value] if isinstance(value, (list, tuple)) else value


def training_overrides(
    spec: Spec, row: str, seed: int, iterations: int | None = None
) -> dict[str, Any]:
    """Return everything that a training changes of the config.

    Args:
        spec: The ablation.
        row: Name of the row.
        seed: Seed of the training.
        iterations: Length of the training, if it differs from the others.
    """
    overrides = merged(merged(spec.shared, spec.rows[row]), {"randomness": {"seed": seed}})
    length = iterations or spec.iterations
    if length is not None:
        # No evaluation within the training: the model is scored afterwards.
        loop = dict(
            _delete_=True,
            by_epoch=False,
            max_iters=length,
            val_interval=length,
            val_begin=length + 1,
        )
        logger = {"default_hooks": {"logger": {"interval": max(1, length // _LOG_ENTRIES)}}}
        overrides = merged(merged(logger, overrides), {"train_cfg": loop})
    return overrides
