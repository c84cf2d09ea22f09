"""Origin of a run's weights: one decision for all entry points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import PretrainedInit
from torch import Tensor, nn

from models.errors import does_not_exist
from scripts.runtime.agreement import of_every_process, of_first_process
from scripts.runtime.checkpoint import read_checkpoint, revised_weights
from scripts.runtime.checkpoint_files import find_newest_checkpoint, stored_facts
from scripts.runtime.errors import ConfigError
from scripts.runtime.file_sharing import share_file


class OriginKind(Enum):
    """How the file with the weights is used."""

    RESUME = "resume"  # weights, optimiser, schedule and place in the epoch
    LOAD_FROM = "load_from"  # only the weights that fit
    WEIGHTS = "weights"  # all weights, and nothing else
    SCRATCH = "scratch"  # no file: initial values


@dataclass(frozen=True)
class WeightsOrigin:
    """Origin of a run's weights.

    Attributes:
        kind: How the file is used.
        path: The checkpoint; None for `SCRATCH`.
        drop_mismatched: Leave out entries of another shape or range (only for `LOAD_FROM`).
        seed: Random seed of the resumed run, if its checkpoint contains it.
        notes: Sentences for the log.
    """

    kind: OriginKind
    path: str | None = None
    drop_mismatched: bool = False
    seed: int | None = None
    notes: list[str] = field(default_factory=list, compare=False)

    def apply_to(self, cfg: Config) -> None:
        """Write the decision into a config in MMEngine's format, in place.

        A config without a random seed uses the seed of the resumed run.
        """
        cfg.resume = self.kind is OriginKind.RESUME
        cfg.load_from = self.path if self.kind is not OriginKind.WEIGHTS else None
        randomness = cfg.get("randomness") or {}
        if self.seed is not None and randomness.get("seed") is None:
            cfg.randomness = {**randomness, "seed": self.seed}


def decide_origin(
    *,
    resume: str | None = None,
    load_from: str | None = None,
    weights: str | None = None,
    drop_mismatched: bool = False,
    config_resume: bool = False,
    config_load_from: str | None = None,
    config_file_resumes: bool = False,
    newest: str | None = None,
) -> WeightsOrigin:
    """Decide the origin of a run's weights.

    Options of the command line take precedence over the config. Automatic resumption uses the
    newest checkpoint of the work dir; if there is none, the run starts as without it.

    Args:
        resume: `--resume`: a path, `'auto'`, or None.
        load_from: `--load-from`.
        weights: `--weights` of val.py.
        drop_mismatched: `--drop-mismatched`, or the config's key of that name.
        config_resume: The config's `resume`.
        config_load_from: The config's `load_from`.
        config_file_resumes: Whether the file of `config_load_from` contains more than weights.
            MMEngine resumes it if the config has `resume=True`.
        newest: The newest checkpoint of the work dir that can be resumed.

    Raises:
        ConfigError: The options contradict each other.
    """
    if resume and load_from:
        raise ConfigError("--resume and --load-from exclude each other: give one of them")
    if weights:
        if resume or load_from:
            raise ConfigError("--weights excludes --resume and --load-from: give one of them")
        return WeightsOrigin(OriginKind.WEIGHTS, weights)
    if drop_mismatched and not (load_from or config_load_from):
        raise ConfigError("--drop-mismatched needs a file to start from: give --load-from")
    if load_from:
        return WeightsOrigin(OriginKind.LOAD_FROM, load_from, drop_mismatched)
    if resume and resume != "auto":
        return WeightsOrigin(OriginKind.RESUME, resume)
    if resume or config_resume:
        if newest:
            return WeightsOrigin(OriginKind.RESUME, newest)
        if config_resume and config_load_from and config_file_resumes:
            return WeightsOrigin(OriginKind.RESUME, config_load_from)
    if config_load_from:
        return WeightsOrigin(OriginKind.LOAD_FROM, config_load_from, drop_mismatched)
    return WeightsOrigin(OriginKind.SCRATCH)


def find_origin(
    cfg: Config,
    *,
    resume: str | None = None,
    load_from: str | None = None,
    drop_mismatched: bool = False,
) -> WeightsOrigin:
    """Decide the origin of a training's weights, after searching its work dir.

    The first process searches and sets damaged checkpoints aside. The other processes use the same
    checkpoint; it is sent to them if they do not share a disk.

    Args:
        cfg: The merged config, with its work dir.
        resume: `--resume`: a path, `'auto'`, or None.
        load_from: `--load-from`.
        drop_mismatched: `--drop-mismatched`.

    Raises:
        ConfigError: The options contradict each other or the config.
    """
    origin = of_first_process(lambda: _look(cfg, resume, load_from, drop_mismatched))
    assert isinstance(origin, WeightsOrigin)
    if origin.path is not None and "://" not in origin.path:
        share_file(origin.path, by_time=origin.kind is OriginKind.RESUME)
    return origin


def _look(
    cfg: Config, resume: str | None, load_from: str | None, drop_mismatched: bool
) -> WeightsOrigin:
    config_resume, config_load_from = bool(cfg.get("resume")), cfg.get("load_from")
    newest, notes, file_resumes = None, [], False
    if not load_from and (resume == "auto" or (config_resume and not resume)):
        search = find_newest_checkpoint(cfg.work_dir, checkpoint_folders(cfg))
        newest, notes = search.path, list(search.notes)
        if newest is None:
            notes.append(f"no checkpoint in {cfg.work_dir} to resume")
            if config_resume and config_load_from and Path(config_load_from).is_file():
                file_resumes = "optimizer" in read_checkpoint(config_load_from)
    origin = decide_origin(
        resume=resume,
        load_from=load_from,
        drop_mismatched=drop_mismatched or bool(cfg.get("drop_mismatched")),
        config_resume=config_resume,
        config_load_from=config_load_from,
        config_file_resumes=file_resumes,
        newest=newest,
    )
    if origin.kind is OriginKind.LOAD_FROM and not Path(str(origin.path)).is_file():
        raise ConfigError(
            f"load_from {does_not_exist(str(origin.path))}: put the checkpoint there "
            "(fusion models: scripts/gen_fusion_pretrain_model.py writes it), or train without it "
            "with --cfg-options load_from=None"
        )
    seed = None
    if origin.kind is OriginKind.RESUME:
        seed = stored_facts(str(origin.path)).get("seed")
    return replace(origin, notes=notes, seed=seed if type(seed) is int else None)


def read_on_every_process(path: str) -> dict[str, Any]:
    """Read a checkpoint found by the first process; the others may not share its disk.

    Raises:
        CheckpointError: As `read_checkpoint`, on all processes.
    """
    if all(of_every_process(Path(path).is_file())):
        return read_checkpoint(path)
    content: dict[str, Any] = of_first_process(lambda: read_checkpoint(path))
    return content


def checkpoint_folders(cfg: Config) -> list[Path]:
    """Return the folders besides the work dir that a config uses for checkpoints."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    out_dir = hook.get("out_dir")
    return [] if out_dir is None else [Path(out_dir, Path(cfg.work_dir).name)]


def settle_pretrained(model: nn.Module, weights: Mapping[str, Tensor] | None) -> list[str]:
    """Check the pretrained files of a model's parts, and drop missing ones that are not needed.

    Args:
        model: The unwrapped model, before its weights are initialised.
        weights: Entries that a checkpoint will fill afterwards; None without a checkpoint. A part
            whose entries are all included does not need its pretrained file.

    Returns:
        Sentences for the log about unneeded files.

    Raises:
        ConfigError: A needed file is missing, or contains no weights of its part.
        CheckpointError: A file is not a checkpoint.
    """
    notes = []
    for name, module in model.named_modules():
        part = _Part(name, module)
        for init_cfg in part.pretrained():
            path = str(init_cfg.get("checkpoint", ""))
            if "://" in path:
                continue
            unfilled = part.entries_not_in(weights or {})
            if Path(path).is_file():
                part.check_file(path, init_cfg.get("prefix"))
            elif unfilled:
                lacking = (
                    f", and the checkpoint does not hold {unfilled[0]} of that part"
                    if weights is not None
                    else ""
                )
                raise ConfigError(
                    f"{part.key} needs the pretrained file {path}, which does not exist{lacking}: "
                    f"put it there, or train from scratch with --cfg-options {part.key}=None"
                )
            else:
                part.forget(init_cfg)
                notes.append(f"{path} is not needed: the checkpoint holds all weights of its part")
    return notes


class _Part:
    """A module of a model with the configuration of its initial weights."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.module: Any = module
        self.prefix = f"{name}." if name else ""
        self.key = f"model.{self.prefix}init_cfg"

    def pretrained(self) -> list[Mapping[str, Any]]:
        """Return the entries of its configuration that name a file."""
        init_cfg = getattr(self.module, "init_cfg", None)
        entries = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
        kinds = ("Pretrained", PretrainedInit)
        return [e for e in entries if isinstance(e, Mapping) and e.get("type") in kinds]

    def forget(self, init_cfg: Mapping[str, Any]) -> None:
        """Remove an entry of the configuration."""
        entries = self.module.init_cfg
        rest = [e for e in entries if e is not init_cfg] if isinstance(entries, list) else []
        self.module.init_cfg = rest or None

    def entries_not_in(self, weights: Mapping[str, Tensor]) -> list[str]:
        """Return the names of its entries that are missing in a state dict of the whole model."""
        names = (self.prefix + entry for entry in self.module.state_dict())
        return [n for n in names if n not in weights and not n.endswith("num_batches_tracked")]

    def check_file(self, path: str, file_prefix: str | None) -> None:
        """Refuse a file that contains none of its weights."""
        start = "" if file_prefix is None else file_prefix.rstrip(".") + "."
        stored = revised_weights(read_checkpoint(path))
        names = {key.removeprefix(start) for key in stored if key.startswith(start)}
        if not names & self.module.state_dict().keys():
            raise ConfigError(
                f"{self.key} names the file {path}, which holds no weights of that part: check "
                f"the file, and the prefix {file_prefix!r} of its keys"
            )
