"""Reduce a checkpoint to its weights, and add a hash to the file name.

    python scripts/publish_model.py CHECKPOINT OUT [--config C]

Writes OUT-HASH.pth, or OUT-HASH.safetensors if OUT ends in .safetensors. As in OpenMMLab's file
names, HASH is the first eight digits of the file's SHA-256. The states of optimiser, schedules and
random generators, the log, and the config with its paths are removed. If a checkpoint has a moving
average of the weights (EMA), the average is published. With --config, the weights are first checked
against that model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from scripts.checkpoints.inspection import build_empty_model
from scripts.runtime.atomic_write import check_file_target, write_atomically
from scripts.runtime.checkpoint import (
    SAFETENSORS,
    check_fit,
    file_sha256,
    has_average,
    read_checkpoint,
    revised_weights,
    weights_of,
)
from scripts.runtime.checkpoint_files import write_checkpoint
from scripts.runtime.command_line import CommandParser, config_file, run_command
from scripts.runtime.errors import ConfigError

# Entries of `meta` to keep; the others name files and machines.
_KEPT_META = ("epoch", "iter", "mmengine_version", "dataset_meta")
_HASH_DIGITS = 8


def publish(source: str, out: str, config: str | None = None) -> Path:
    """Write the published file and print its name and size.

    Args:
        source: Checkpoint.
        out: Name of the file without hash, ending in `.pth` or `.safetensors`; `.pth` is added if
            there is no suffix.
        config: Config of the model that the weights must fit.

    Returns:
        The file.

    Raises:
        CheckpointError: The file is not a checkpoint, or does not fit the config.
        ConfigError: The name has another suffix, or the file cannot be written.
    """
    target = Path(out)
    suffix = target.suffix if target.suffix in (".pth", SAFETENSORS) else ""
    if not suffix and target.suffix in (".pt", ".ckpt", ".bin"):
        raise ConfigError(f"{out} ends in {target.suffix}: use .pth or {SAFETENSORS}")
    stem = target.name.removesuffix(suffix)
    check_file_target("OUT", target)
    checkpoint = read_checkpoint(source)
    weights = revised_weights(checkpoint)
    if config is not None:
        model = build_empty_model(config, {})
        check_fit(weights_of(checkpoint, model), model, source)
    meta = _kept(checkpoint.get("meta") or {})
    # A view would store the whole tensor that it belongs to.
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    draft = target.with_name(f".{stem}.{os.getpid()}{suffix or '.pth'}")
    try:
        if suffix == SAFETENSORS:
            write_safetensors(weights, draft, meta)
        else:
            write_checkpoint({"state_dict": weights, "meta": meta}, draft)
        digest = file_sha256(draft)[:_HASH_DIGITS]
        path = target.with_name(f"{stem}-{digest}{suffix or '.pth'}")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    before, after = (os.path.getsize(each) / 1e6 for each in (source, path))
    average = " (moving average)" if has_average(checkpoint) else ""
    print(f"{path}: {len(weights)} tensors{average}, {after:.1f} MB of {before:.1f} MB")
    return path


def _kept(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {key: meta[key] for key in _KEPT_META if meta.get(key) is not None}


def write_safetensors(
    weights: Mapping[str, Tensor], path: str | Path, meta: Mapping[str, Any]
) -> Path:
    """Write weights as `.safetensors` atomically; metadata is converted to text."""
    from safetensors.torch import save

    notes = {"format": "pt", **{key: str(value) for key, value in meta.items()}}
    content = save(dict(weights), metadata=notes)
    # The library writes metadata in any order; equal weights must give equal files.
    length = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + length])
    head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: Path) -> None:
        with open(file, "wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.write(memoryview(content)[8 + length :])

    return write_atomically(path, write)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint written by train.py")
    parser.add_argument("out", metavar="OUT", help="name of the file, without the hash")
    parser.add_argument(
        "--config", type=config_file, metavar="C", help="config that the weights must fit"
    )
    return run_command(parser, lambda args: _run(args.checkpoint, args.out, args.config), arguments)


def _run(source: str, out: str, config: str | None) -> None:
    publish(source, out, config)
