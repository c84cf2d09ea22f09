"""Settings: values at the top of a config that its parts share.

A setting at the top of a config is passed to every part that has an argument of that name and no
value for it. The value of an argument therefore comes from the part itself if it is written there,
otherwise from the surrounding part, and otherwise from the top of the config.

Settings are resolved after the files and the command line have been merged. `resolve_settings`
changes only the config that it is passed.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.registry import LOOPS, TRANSFORMS

from scripts.runtime.errors import ConfigError
from scripts.runtime.parts import LOADERS, SECTIONS, Part, find_type, walk
from scripts.runtime.runner_keys import RUNNER_KEYS

# A dict of the config, after its dotted path.
PlacedDict = tuple[str, Mapping[str, Any]]
# Settings whose number of entries is another setting.
_COUNTED_BY = {"class_names": "num_classes", "cameras": "num_cams"}
# Default hooks that MMEngine adds itself, and omits if they are None.
_MMENGINE_HOOKS = frozenset(
    {"runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"}
)
# Sections that may be lists.
_LISTS = frozenset({"val_evaluator", "test_evaluator", "param_scheduler", "custom_hooks"})
# Keys that the test split copies from the validation split by default.
_TEST_FROM_VAL = {
    "test_dataloader": "val_dataloader",
    "test_evaluator": "val_evaluator",
    "test_cfg": "val_cfg",
}


@dataclass
class Setting:
    """A setting and the parts that read it.

    Attributes:
        name: Its key at the top of the config.
        value: Its value.
        readers: Places of the parts that use the value.
        written: Places of the parts that set their own value, with that value.
    """

    name: str
    value: Any
    readers: list[str] = field(default_factory=list)
    written: dict[str, Any] = field(default_factory=dict)

    @property
    def is_effective(self) -> bool:
        """Whether some part uses the value."""
        return bool(self.readers) or any(
            _equal(value, self.value) for value in self.written.values()
        )

    @property
    def is_part(self) -> bool:
        """Whether the value is a part, or a list of parts."""
        values = self.value if isinstance(self.value, (list, tuple)) else [self.value]
        return any(isinstance(value, dict) for value in values)


def setting_names(cfg: Mapping[str, Any]) -> list[str]:
    """Return the top-level keys of a config that are settings, not keys of the Runner."""
    return [name for name in cfg if name not in RUNNER_KEYS and not name.startswith("_")]


def resolve_settings(cfg: MutableMapping[str, Any]) -> dict[str, Setting]:
    """Pass every part of a config the settings that it reads, in place.

    Args:
        cfg: A merged config.

    Returns:
        The settings by name, with their readers.

    Raises:
        ConfigError: A section has the wrong type, or the training loop is specified twice.
    """
    _check_sections(cfg)
    _drop_disabled_hooks(cfg)
    _complete_test_split(cfg)
    _name_loop(cfg)
    settings = {name: Setting(name, cfg[name]) for name in setting_names(cfg)}
    values = {name: setting.value for name, setting in settings.items()}
    derived = _derived_values(cfg, values)
    stack: list[dict[str, Any]] = [{**values, **derived}]
    for node in walk(cfg):
        part = node.part
        del stack[node.depth + 1 :]
        stack.append(_fill(part, stack[node.depth], settings))
    for name in ("class_names", "cameras"):
        if name in settings and _COUNTED_BY[name] in derived:
            settings[name].readers.append(f"{_COUNTED_BY[name]} (their number)")
    if "batch_size" in settings:
        _read_batch_size(cfg, settings["batch_size"])
    _fit_to_loop(cfg)
    return settings


def _check_sections(cfg: Mapping[str, Any]) -> None:
    """Check the types of the sections that contain parts.

    Raises:
        ConfigError: A section is not a dict, nor a list of dicts where that is allowed.
    """
    for name in (*SECTIONS, *LOADERS):
        section = cfg.get(name)
        if section is None or isinstance(section, dict):
            continue
        is_list = isinstance(section, (list, tuple)) and name in _LISTS
        if not is_list or not all(isinstance(entry, dict) for entry in section):
            kind = "a dict or a list of dicts" if name in _LISTS else "a dict"
            raise ConfigError(f"{name} is {_short(section)}, expected {kind}")


def _drop_disabled_hooks(cfg: Mapping[str, Any]) -> None:
    """Remove default hooks that are None; MMEngine removes only its own."""
    hooks = cfg.get("default_hooks") or {}
    for name in [name for name, hook in hooks.items() if hook is None]:
        if name not in _MMENGINE_HOOKS:
            hooks.pop(name)


def _complete_test_split(cfg: MutableMapping[str, Any]) -> None:
    """Derive the test split from the validation split and the config's changes to it.

    A data set or an evaluator with a `type` replaces the one of the validation split.
    """
    for test, val in _TEST_FROM_VAL.items():
        given, base = cfg.get(test), cfg.get(val)
        if base is None:
            continue
        if given is None:
            cfg[test] = copy.deepcopy(base)
        elif isinstance(given, dict) and isinstance(base, dict) and "type" not in given:
            if "type" in given.get("dataset", {}):
                base = {key: value for key, value in base.items() if key != "dataset"}
            cfg[test] = merged(base, given)


def _name_loop(cfg: MutableMapping[str, Any]) -> None:
    """Set the type of the training loop according to `by_epoch` (default: epochs).

    Raises:
        ConfigError: The config sets both the type of a loop and `by_epoch`.
    """
    loop = cfg.get("train_cfg")
    if not isinstance(loop, dict):
        return
    if "type" in loop and "by_epoch" in loop:
        raise ConfigError(
            f"train_cfg has type='{loop['type']}' and by_epoch={loop['by_epoch']}: leave one out"
        )
    if "type" not in loop:
        by_epoch = loop.pop("by_epoch", True)
        loop["type"] = "ResumableEpochTrainLoop" if by_epoch else "ResumableIterTrainLoop"


def merged(base: Mapping[str, Any], delta: Mapping[str, Any]) -> Any:
    """Return `base` merged with `delta` like config files in MMEngine."""
    from mmengine.config import Config, ConfigDict

    return ConfigDict(Config._merge_a_into_b(copy.deepcopy(delta), copy.deepcopy(base)))


def _derived_values(cfg: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return derived values of settings that are not given."""
    derived: dict[str, Any] = {}
    for listed, counted in _COUNTED_BY.items():
        if values.get(listed) is not None and counted not in values:
            derived[counted] = len(values[listed])
    number = values.get("num_classes", derived.get("num_classes"))
    if number is not None and "empty_label" not in values:
        derived["empty_label"] = number  # the label after the last class
    if not counts_epochs(cfg) and "by_epoch" not in values:
        derived["by_epoch"] = False
    return derived


def _fill(
    part: Part, environment: Mapping[str, Any], settings: Mapping[str, Setting]
) -> dict[str, Any]:
    """Pass a part the values that it reads; return the values for the parts inside it."""
    inner = dict(environment)
    # Arguments with another meaning than the setting of the same name.
    skipped = set(getattr(part.target, "not_settings", ()))
    if part.place in LOADERS:
        skipped.add("batch_size")
    for name in part.arguments.names:
        if name not in environment or name in skipped:
            continue
        value, setting = environment[name], settings.get(name)
        if name not in part.config:
            part.config[name] = _steps_for(part, name, copy.deepcopy(value), environment)
            if setting is not None:
                setting.readers.append(part.place)
        elif _is_delta(part.config[name], value):
            part.config[name] = merged(value, part.config[name])
            if setting is not None:
                setting.readers.append(part.place)
        elif setting is not None:
            setting.written[f"{part.place}.{name}"] = part.config[name]
        inner[name] = part.config[name]
    return inner


def _is_delta(given: Any, setting: Any) -> bool:
    """Return whether a part gives a dict without `type` for a setting that is a part."""
    return (
        isinstance(given, dict)
        and isinstance(setting, dict)
        and "type" in setting
        and "type" not in given
    )


def _steps_for(part: Part, name: str, value: Any, environment: Mapping[str, Any]) -> Any:
    """Remove the LiDAR steps from a shared pipeline if the data set has no LiDAR."""
    use_lidar = part.config.get("use_lidar", environment.get("use_lidar", False))
    if name != "pipeline" or use_lidar or "use_lidar" not in part.arguments.names:
        return value
    return without_lidar_steps(value)


def without_lidar_steps(pipeline: Iterable[Any]) -> list[Any]:
    """Return a pipeline without the transforms that need LiDAR."""
    return [step for step in pipeline if not _needs_lidar(step)]


def _needs_lidar(step: Any) -> bool:
    kind = find_type(step.get("type"), TRANSFORMS) if isinstance(step, dict) else None
    return bool(getattr(kind, "needs_lidar", False))


def _read_batch_size(cfg: Mapping[str, Any], setting: Setting) -> None:
    """Record the training loader as a reader of `batch_size`."""
    loader = cfg.get("train_dataloader")
    if not isinstance(loader, dict):  # no training
        setting.readers.append("trainings")
    elif "batch_size" in loader:
        setting.written["train_dataloader.batch_size"] = loader["batch_size"]
    else:
        setting.readers.append("train_dataloader")


def counts_epochs(cfg: Mapping[str, Any]) -> bool:
    """Return whether the training loop counts epochs, not iterations."""
    from mmengine.runner import IterBasedTrainLoop

    loop = cfg.get("train_cfg")
    kind = find_type(loop["type"], LOOPS) if isinstance(loop, Mapping) else None
    return not (isinstance(kind, type) and issubclass(kind, IterBasedTrainLoop))


def _fit_to_loop(cfg: MutableMapping[str, Any]) -> None:
    """Make checkpoints and schedulers count epochs or iterations like the training loop."""
    by_epoch = counts_epochs(cfg)
    checkpoint = (cfg.get("default_hooks") or {}).get("checkpoint")
    if isinstance(checkpoint, dict) and "type" in checkpoint:
        loop = cfg.get("train_cfg") or {}
        evaluations = loop.get("val_interval", 1000) or loop.get("max_iters", -1)
        checkpoint.setdefault("interval", 1 if by_epoch else evaluations)
    if by_epoch:
        return
    schedulers = cfg.get("param_scheduler") or []
    for scheduler in schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]:
        if scheduler.get("by_epoch") is False:
            scheduler.pop("convert_to_iter_based", None)


def check_agreement(cfg: Mapping[str, Any]) -> None:
    """Check that data sets, metrics and head agree.

    Raises:
        ConfigError: Two values differ; the message names both places.
    """
    leaves = {
        loader: leaf_datasets((cfg.get(loader) or {}).get("dataset"), f"{loader}.dataset")
        for loader in LOADERS
    }
    datasets = [leaf for group in leaves.values() for leaf in group]
    for place, dataset in datasets[1:]:
        _check_equal("class_names", datasets[0], (place, dataset))
    for split in ("val", "test"):
        evaluator = cfg.get(f"{split}_evaluator") or []
        for index, metric in enumerate(evaluator if isinstance(evaluator, list) else [evaluator]):
            for leaf in leaves[f"{split}_dataloader"]:
                _check_equal("class_names", leaf, (f"{split}_evaluator[{index}]", metric))
    head = (cfg.get("model") or {}).get("pts_bbox_head")
    if isinstance(head, dict):
        for leaf in datasets:
            _check_head(leaf, ("model.pts_bbox_head", head))
    for leaf in datasets:
        _check_lidar_steps(leaf)


def _check_lidar_steps(dataset: PlacedDict) -> None:
    """Refuse LiDAR steps in the pipeline of a data set without LiDAR."""
    place, config = dataset
    if config.get("use_lidar", False):
        return
    for index, step in enumerate(config.get("pipeline") or ()):
        if _needs_lidar(step):
            raise ConfigError(
                f"{place}.pipeline[{index}] is {step['type']}, but the data set has no LiDAR: set "
                "use_lidar=True, or leave the step out"
            )


def _check_head(dataset: PlacedDict, head: PlacedDict) -> None:
    """Compare a data set with the head."""
    for name in ("pc_range", "voxel_size", "num_frames"):
        _check_equal(name, dataset, head)
    _check_equal("use_lidar", dataset, head, default=False)
    for listed, counted in _COUNTED_BY.items():
        values = dataset[1].get(listed)
        if values is not None and counted in head[1] and len(values) != head[1][counted]:
            raise ConfigError(
                f"{dataset[0]}.{listed} has {len(values)} entries, but {head[0]}.{counted} is "
                f"{head[1][counted]}: they must agree; set {listed} once, at the top of the config"
            )
    names, free = dataset[1].get("class_names"), head[1].get("empty_label")
    if names is not None and free is not None and free != len(names):
        raise ConfigError(
            f"{head[0]}.empty_label is {free}, but {dataset[0]}.class_names has {len(names)} "
            f"classes, after which free voxels have the label {len(names)}: leave empty_label out"
        )


def _check_equal(name: str, first: PlacedDict, second: PlacedDict, default: Any = None) -> None:
    """Compare one key of two dicts where both have a value."""
    values = first[1].get(name, default), second[1].get(name, default)
    if None not in values and not _equal(*values):
        raise ConfigError(
            f"{first[0]}.{name} is {_short(values[0])}, but {second[0]}.{name} is "
            f"{_short(values[1])}: they must agree; set {name} once, at the top of the config"
        )


def leaf_datasets(dataset: Any, place: str) -> list[PlacedDict]:
    """Return the data sets inside wrappers that repeat, concatenate or balance them.

    Args:
        dataset: Config of a data set.
        place: Dotted path to it.
    """
    if not isinstance(dataset, dict):
        return []
    if isinstance(dataset.get("dataset"), dict):
        return leaf_datasets(dataset["dataset"], f"{place}.dataset")
    if isinstance(dataset.get("datasets"), (list, tuple)):
        return [
            leaf
            for index, inner in enumerate(dataset["datasets"])
            for leaf in leaf_datasets(inner, f"{place}.datasets[{index}]")
        ]
    return [(place, dataset)]


@dataclass(frozen=True)
class Written:
    """Origin of a config's values, to check for settings without effect.

    Attributes:
        own_names: Names that the user's file or the command line sets, with their description in
            messages. Inherited names are accepted if any part of the code base reads them, even if
            no part of this config does.
        variables: Names that files use as variables, by copying their value.
        known_names: Arguments of all parts in the code base.
        options: Dotted keys of the command line.
    """

    own_names: Mapping[str, str]
    variables: Collection[str]
    known_names: Collection[str]
    options: Collection[str] = ()

    def overrides(self, place: str) -> bool:
        """Return whether the command line set the value at a place."""
        path = place.replace("[", ".").replace("]", "")
        return any(path == key or path.startswith(f"{key}.") for key in self.options)


def refuse_unread(settings: Mapping[str, Setting], written: Written) -> None:
    """Refuse settings without effect.

    Args:
        settings: Return value of `resolve_settings`.
        written: Origin of the values.

    Raises:
        ConfigError: A setting has no reader; the message suggests the nearest name.
    """
    for name, setting in settings.items():
        if setting.is_effective or name in written.variables:
            continue
        if name not in written.own_names and (setting.written or name in written.known_names):
            continue
        if name not in written.options and any(map(written.overrides, setting.written)):
            continue
        prefix = f"{written.own_names.get(name, 'the config')}: {name}"
        if setting.written:
            place, value = next(iter(setting.written.items()))
            raise ConfigError(
                f"{prefix}={_short(setting.value)} has no effect, because {place}="
                f"{_short(value)} is set: change that one, or leave it out"
            )
        readable = {s.name for s in settings.values() if s.is_effective}
        readable |= {*written.known_names, *RUNNER_KEYS}
        raise ConfigError(
            f"{prefix} is not read by any part of the config{did_you_mean(name, readable - {name})}"
        )


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest candidate; an empty text if there is none."""
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_equal, first, second))
    return bool(first == second)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
