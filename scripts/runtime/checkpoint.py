"""Checkpoints: safe reading, strict fitting, one-sentence errors."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from loaders.safe_reading import MIB, FileKind, file_size, limited_memory, open_file
from models.errors import UserError
from models.layers import GridModule
from models.weight_layouts import to_own_layout
from scripts.runtime.archive_check import damage_of

NUM_NAMED_KEYS = 3  # keys of each kind listed in a message


class CheckpointError(UserError, ValueError):
    """A file is not a checkpoint, or belongs to another model."""


_GIVE_ANOTHER = "give the .pth file that train.py wrote"
SAFETENSORS = ".safetensors"
# Keys under which other tool chains store a model's weights, and their moving average.
_WEIGHT_KEYS = ("state_dict", "model", "model_state_dict")
_AVERAGE_KEYS = ("ema_state_dict", "state_dict_ema", "model_ema", "ema")
# Prefixes that wrappers add to every name.
_WRAPPERS = ("module.", "model.", "_orig_mod.")
_CHECKPOINT = FileKind(
    "checkpoint",
    _GIVE_ANOTHER,
    _GIVE_ANOTHER,
    max_bytes=64 << 30,
    error=CheckpointError,
    missing_error=CheckpointError,
)
# Tensors take as much memory as in the file; their metadata takes little.
_MEMORY_FACTOR = 3
_MEMORY_FLOOR = 128 * MIB


@dataclass(frozen=True)
class CheckpointInfo:
    """Identity of a checkpoint file that has been loaded."""

    path: str
    sha256: str
    epoch: int | None
    iteration: int | None


def allow_checkpoint_classes() -> None:
    """Allow `torch.load` to read the objects that mmengine's runner stores with the weights.

    torch >= 2.6 loads only tensors, plain containers and listed classes (`weights_only=True`).
    mmengine 0.10.7 stores its message hub: HistoryBuffer objects that hold numpy arrays and
    scalars. These classes are added to the list; the check itself stays on, because an untrusted
    checkpoint could otherwise run code. A pickled HistoryBuffer also refers to its statistics by
    `getattr(HistoryBuffer, "min")`, for which a restricted `getattr` is registered.
    """
    core = np.core if int(np.__version__.split(".")[0]) < 2 else np._core  # type: ignore[attr-defined]
    multiarray = core.multiarray
    dtype_classes = {
        type(np.dtype(kind))
        for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "U1")
    }
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_statistic_of_history_buffer, "builtins.getattr"),
            np.ndarray,
            np.dtype,
            multiarray._reconstruct,
            multiarray.scalar,
            *sorted(dtype_classes, key=lambda cls: cls.__name__),
        ]
    )


def _statistic_of_history_buffer(owner: Any, name: str) -> Any:
    """Return a public method of HistoryBuffer: the only `getattr` allowed in a checkpoint."""
    if owner is not HistoryBuffer or name.startswith("_"):
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL builtins.getattr of {name}")
    return getattr(owner, name)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint file onto the CPU, with memory use limited by the file's size.

    Args:
        path: Checkpoint written by `train.py`, a published checkpoint, or weights as
            `.safetensors`. Files of other tool chains may store the weights under `model`, and
            additionally their moving average (EMA).

    Returns:
        The stored dict. `state_dict` is the average if the file has one; a bare state dict is
        wrapped as `{"state_dict": ...}`.

    Raises:
        CheckpointError: The file is missing, is not a checkpoint, requests more memory than a file
            of its size can need, or holds classes that are not loaded for safety.
    """
    path = Path(path)
    content = _load_safetensors(path) if path.suffix == SAFETENSORS else _load(path)
    names = [
        key
        for key in _WEIGHT_KEYS
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)
    ]
    if names:
        checkpoint = dict(content)
        checkpoint["state_dict"] = checkpoint.pop(names[0])
    elif isinstance(content, Mapping) and content and _are_weights(content):
        checkpoint = {"state_dict": dict(content)}
    else:
        raise CheckpointError(f"{path} holds no weights (no 'state_dict'): {_GIVE_ANOTHER}")
    if not _are_weights(checkpoint["state_dict"]):
        raise CheckpointError(
            f"the 'state_dict' of {path} is not a dict of named tensors: {_GIVE_ANOTHER}"
        )
    if checkpoint.get("meta") is not None and not isinstance(checkpoint["meta"], Mapping):
        raise CheckpointError(f"the 'meta' of {path} is not a dict: {_GIVE_ANOTHER}")
    average = averaged_weights(checkpoint)
    if average is not None:
        # Averages may lack buffers, and contain a step counter.
        weights = without_wrappers(checkpoint["state_dict"])
        average = without_wrappers(average)
        checkpoint["state_dict"] = {key: average.get(key, value) for key, value in weights.items()}
    return checkpoint


def averaged_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Return the moving average of the weights (EMA) that a checkpoint stores additionally.

    In checkpoints of MMEngine's EMAHook, `state_dict` is the average and `ema_state_dict`, which
    includes a counter `steps`, holds the weights that the optimiser updates.

    Returns:
        The average; None if there is none, or if `state_dict` is the average.
    """
    for key in _AVERAGE_KEYS:
        average = checkpoint.get(key)
        if isinstance(average, Mapping) and isinstance(average.get("module"), Mapping):
            average = average["module"]  # nested like this by DeepSpeed and timm
        if isinstance(average, Mapping) and average and _are_weights(average):
            return None if "steps" in average else dict(average)
    return None


def has_average(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint returned by `read_checkpoint` has averaged weights."""
    return any(isinstance(checkpoint.get(key), Mapping) for key in _AVERAGE_KEYS)


def _load_safetensors(path: Path) -> dict[str, Any]:
    """Return the tensors of a `.safetensors` file, and its metadata as `meta`."""
    import safetensors.torch

    with open_file(path, _CHECKPOINT) as file:
        size = file_size(file)
        data = file.read()
    try:
        weights = safetensors.torch.load(data)
        head = int.from_bytes(data[:8], "little")
        notes = json.loads(data[8 : 8 + min(head, size)]).get("__metadata__") or {}
    except Exception:  # the library raises its own error types, and torch's
        raise CheckpointError(
            f"{path} is not a safetensors file, or is damaged: give one that "
            "scripts/publish_model.py wrote"
        ) from None
    if not weights:
        raise CheckpointError(f"{path} holds no weights: {_GIVE_ANOTHER}")
    meta: dict[str, Any] = dict(notes)
    for key in ("epoch", "iter"):
        if str(meta.get(key, "")).isdigit():
            meta[key] = int(meta[key])
    return {"state_dict": weights, "meta": meta}


def _are_weights(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _load(path: Path) -> Any:
    """Return the content of a file, or raise a CheckpointError."""
    allow_checkpoint_classes()
    with open_file(path, _CHECKPOINT) as file:
        limit = _MEMORY_FLOOR + _MEMORY_FACTOR * file_size(file)
        try:
            with limited_memory(limit):
                damage = damage_of(file)
                if damage is None:
                    return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if "Unsupported global" in str(error):
                name = str(error).split("GLOBAL ", 1)[-1].split(" ", 1)[0]
                raise CheckpointError(
                    f"{path} holds an object of class {name}, which is not loaded for safety: "
                    "save the file again with only its 'state_dict'"
                ) from None
            raise CheckpointError(_not_a_checkpoint(path)) from None
        except Exception:  # a broken archive or pickle can raise almost any error
            raise CheckpointError(_not_a_checkpoint(path)) from None
    raise CheckpointError(f"{_not_a_checkpoint(path)} ({damage})")


def _not_a_checkpoint(path: Path) -> str:
    return f"{path} is not a PyTorch checkpoint, or is damaged: {_GIVE_ANOTHER}"


def _listed(keys: list[str]) -> str:
    more = len(keys) - NUM_NAMED_KEYS
    return ", ".join(keys[:NUM_NAMED_KEYS]) + (f" and {more} more" if more > 0 else "")


def revised_weights(
    checkpoint: Mapping[str, Any], revise_keys: Sequence[tuple[str, str]] = ()
) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint with renamed keys.

    Args:
        checkpoint: Return value of `read_checkpoint`.
        revise_keys: Regular expressions and their replacements, applied to every key in turn after
            the prefixes of wrappers (`module.`, `model.`) have been removed.
    """
    weights = {}
    for key, value in without_wrappers(checkpoint["state_dict"]).items():
        for pattern, replacement in revise_keys:
            key = re.sub(pattern, replacement, key)
        weights[key] = value
    return weights


def without_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without the prefixes that wrappers of the model add to every name."""
    named = {key.removeprefix("module."): value for key, value in weights.items()}
    while named:
        shared = [each for each in _WRAPPERS if all(key.startswith(each) for key in named)]
        if not shared:
            break
        named = {key.removeprefix(shared[0]): value for key, value in named.items()}
    return named


def weights_of(
    checkpoint: Mapping[str, Any], model: nn.Module, revise_keys: Sequence[tuple[str, str]] = ()
) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint with the names and layouts of a model.

    Args:
        checkpoint: Return value of `read_checkpoint`.
        model: The model; weights of sparse convolutions are converted to its layout.
        revise_keys: See `revised_weights`.
    """
    return to_own_layout(revised_weights(checkpoint, revise_keys), model)


def misfits(
    weights: Mapping[str, Tensor], model: nn.Module
) -> tuple[list[str], list[str], list[str]]:
    """Return the differences between a state dict and a model.

    Returns:
        Missing keys, unexpected keys, and descriptions `key (shape in the file, shape in the
        model)` of entries whose shapes differ.
    """
    expected = model.state_dict()
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    mismatched = [
        f"{key} ({tuple(weights[key].shape)} in the file, {tuple(value.shape)} in the model)"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    return missing, unexpected, mismatched


def check_fit(weights: Mapping[str, Tensor], model: nn.Module, path: str | Path) -> None:
    """Raise CheckpointError, naming the first keys, unless the weights fit the model exactly."""
    missing, unexpected, mismatched = misfits(weights, model)
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}
    found = "; ".join(f"{kind}: {_listed(keys)}" for kind, keys in kinds.items() if keys)
    if found:
        raise CheckpointError(
            f"{path} is a checkpoint of another model ({found}): "
            "use the config that it was trained with"
        )


def file_sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_weights(model: nn.Module, path: str | Path) -> CheckpointInfo:
    """Load a checkpoint into a model whose keys and shapes match exactly.

    Args:
        model: The unwrapped model.
        path: Checkpoint file.

    Returns:
        Identity of the loaded file.

    Raises:
        CheckpointError: As `read_checkpoint`, or the checkpoint belongs to another model.
    """
    checkpoint = read_checkpoint(path)
    weights = weights_of(checkpoint, model)
    check_fit(weights, model, path)
    fill_weights(model, weights, path)
    meta = checkpoint.get("meta") or {}
    return CheckpointInfo(str(path), file_sha256(path), meta.get("epoch"), meta.get("iter"))


def fill_weights(
    model: nn.Module, weights: Mapping[str, Tensor], path: str | Path, *, strict: bool = True
) -> None:
    """Load weights whose names and shapes fit; a model may still reject their content."""
    try:
        model.load_state_dict(weights, strict=strict)
    except RuntimeError as error:
        _, _, reasons = str(error).partition("\n")  # after "Error(s) in loading state_dict ..."
        reason = reasons.strip().splitlines()[0].strip() if reasons.strip() else str(error)
        raise CheckpointError(f"{path} does not fit the config: {reason}") from error


@dataclass(frozen=True)
class Fit:
    """The part of a checkpoint that fits a model.

    Attributes:
        weights: The entries to load, with the model's names and layouts.
        missing: Keys of the model that keep their initial values.
        unexpected: Keys of the file that the model does not have.
        dropped: Descriptions of entries that are left out because their shape or range differs.
    """

    weights: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    dropped: list[str]


def fit_weights(
    model: nn.Module,
    path: str | Path,
    revise_keys: Sequence[tuple[str, str]] = (),
    *,
    drop_mismatched: bool = False,
) -> Fit:
    """Return the entries of a checkpoint that fit a model, for training from them (`load_from`).

    Args:
        model: The unwrapped model.
        path: Checkpoint file; it may lack parts of the model.
        revise_keys: Renaming of the file's keys, as in `revised_weights`.
        drop_mismatched: Leave out entries whose shape differs (other classes, another number of
            queries) and voxel grids whose range differs. Otherwise they are an error.

    Raises:
        CheckpointError: The file is not a checkpoint, has no key in common with the model, or an
            entry does not fit.
    """
    weights = weights_of(read_checkpoint(path), model, revise_keys)
    missing, unexpected, mismatched = misfits(weights, model)
    dropped: list[str] = []
    if drop_mismatched:
        dropped = _drop_mismatched(weights, model)
        missing, unexpected, mismatched = misfits(weights, model)
    if mismatched:
        try:
            check_fit(weights, model, path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}, or leave it out (--drop-mismatched)") from None
    if len(missing) == len(model.state_dict()):
        check_fit(weights, model, path)
    return Fit(weights, missing, unexpected, dropped)


def _drop_mismatched(weights: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Remove entries that do not fit the model from a state dict; return their descriptions."""
    expected = model.state_dict()
    dropped = []
    for name, module in model.named_modules():
        if not isinstance(module, GridModule):
            continue
        prefix = f"{name}." if name else ""
        stored = weights.get(f"{prefix}pc_range")
        if stored is None or module.has_range(stored):
            continue
        dropped.append(
            f"{prefix}pc_range ({stored.tolist()} in the file, {list(module.grid_range)} in the "
            "model)"
        )
        for key in ("pc_range", "scene_size", "voxel_size", "voxel_num"):
            weights.pop(prefix + key, None)
    for key, value in expected.items():
        if key in weights and weights[key].shape != value.shape:
            shape = tuple(weights.pop(key).shape)
            dropped.append(f"{key} ({shape} in the file, {tuple(value.shape)} in the model)")
    return dropped


def start_from(
    model: nn.Module,
    path: str | Path,
    revise_keys: Sequence[tuple[str, str]] = (),
    *,
    drop_mismatched: bool = False,
) -> str:
    """Load the fitting entries of a checkpoint into a model; see `fit_weights`.

    Returns:
        Sentences for the log: the number of loaded entries, and the entries left out.
    """
    fit = fit_weights(model, path, revise_keys, drop_mismatched=drop_mismatched)
    fill_weights(model, fit.weights, path, strict=False)
    total = len(model.state_dict())
    lines = [f"started from {path}: {total - len(fit.missing)} of {total} tensors loaded"]
    if fit.missing:
        lines[0] += f"; left as initialised: {_listed(fit.missing)}"
    if fit.unexpected:
        lines[0] += f"; not used: {_listed(fit.unexpected)}"
    lines += [f"dropped: {description}" for description in fit.dropped]
    return "\n".join(lines)
