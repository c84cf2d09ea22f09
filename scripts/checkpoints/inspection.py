"""Compare a checkpoint with the model of a config.

    python scripts/inspect_checkpoint.py CONFIG CHECKPOINT [--revise-keys PATTERN=REPLACEMENT ...]

Prints facts about the file, a summary by module, and every missing, unexpected and mismatched
entry. The exit code is 1 if there is any such entry (val.py would reject the file), and 2 if the
file or the config cannot be read. No weights are initialised and no data is needed.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from models.weight_layouts import (
    SparseLayout,
    detect_layout,
    sparse_weight_shapes,
    to_own_layout,
)
from scripts.runtime.building import named_config_keys
from scripts.runtime.checkpoint import misfits, read_checkpoint, revised_weights
from scripts.runtime.command_line import CommandParser, add_config_arguments, run_command
from scripts.runtime.config import load_config

LAYOUT_NAMES = {
    SparseLayout.SPCONV2: "spconv 2",
    SparseLayout.SPCONV1: "spconv 1 or mmcv",
    SparseLayout.SPCONV2_NATIVE: "spconv 2.0 or 2.1 (native)",
    None: "unknown",
}


@dataclass(frozen=True)
class Comparison:
    """Differences between a checkpoint and a model; the lists are empty if it fits."""

    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    @property
    def fits(self) -> bool:
        """Whether val.py would load the file."""
        return not (self.missing or self.unexpected or self.mismatched)


def build_empty_model(config: str, options: Mapping[str, Any]) -> nn.Module:
    """Build the model of a config without memory for its weights."""
    cfg = load_config(config, options)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    with named_config_keys(cfg), torch.device("meta"):
        model: nn.Module = MODELS.build(cfg.model)
    return model


def module_of(key: str) -> str:
    """Return the model's part that an entry of the state dict belongs to."""
    parts = key.split(".")
    return ".".join(parts[:2]) if parts[0] == "pts_bbox_head" and len(parts) > 2 else parts[0]


def summary_lines(weights: Mapping[str, Tensor], model: nn.Module) -> Iterable[str]:
    """Yield a table: entries and values per module, in the file and in the model."""
    expected = model.state_dict()
    rows = list(dict.fromkeys(map(module_of, [*expected, *weights])))
    width = max(map(len, rows))
    entries = [Counter(map(module_of, keys)) for keys in (weights, expected)]
    values = [Counter[str](), Counter[str]()]
    for counter, state in zip(values, (weights, expected), strict=True):
        for key, value in state.items():
            counter[module_of(key)] += value.numel()
    header = ("entries: file", "model", "values: file", "model")
    yield f"{'module':<{width}} {header[0]:>14} {header[1]:>8} {header[2]:>14} {header[3]:>12}"
    for row in rows:
        (file, model_entries), (file_values, model_values) = (
            [counter[row] for counter in pair] for pair in (entries, values)
        )
        yield f"{row:<{width}} {file:>14} {model_entries:>8} {file_values:>14,} {model_values:>12,}"


def fact_lines(checkpoint: Mapping[str, Any]) -> Iterable[str]:
    """Yield the metadata of a file."""
    meta = checkpoint.get("meta") or {}
    for name in ("epoch", "iter", "mmcv_version", "mmengine_version", "experiment_name", "time"):
        if meta.get(name) is not None:
            yield f"{name}: {meta[name]}"
    yield f"optimizer state: {'yes' if checkpoint.get('optimizer') else 'no'}"


def range_mismatch(weights: Mapping[str, Tensor], model: nn.Module) -> Iterable[str]:
    """Yield a sentence if a checkpoint's range differs from the model's."""
    key = "pts_bbox_head.pc_range"
    if key in weights and tuple(weights[key].shape) == (6,):
        stored = weights[key].tolist()
        head: Any = model.get_submodule("pts_bbox_head")
        expected = list(head.grid_range)
        if any(abs(a - b) > 1e-4 for a, b in zip(stored, expected, strict=True)):
            yield f"{key} ({stored} in the file, {expected} in the model)"


def inspect(
    config: str,
    path: str,
    options: Mapping[str, Any] | None = None,
    revise_keys: Sequence[tuple[str, str]] = (),
) -> Comparison:
    """Print the comparison of a checkpoint with the model of a config, and return it."""
    model = build_empty_model(config, options or {})
    checkpoint = read_checkpoint(path)
    renamed = revised_weights(checkpoint, revise_keys)
    print(path)
    for line in fact_lines(checkpoint):
        print(f"  {line}")
    if sparse_weight_shapes(model):
        print(f"  sparse convolutions: {LAYOUT_NAMES[detect_layout(renamed, model)]}")
    weights = to_own_layout(renamed, model)
    for line in summary_lines(weights, model):
        print(f"  {line}")
    missing, unexpected, mismatched = misfits(weights, model)
    comparison = Comparison(missing, unexpected, [*mismatched, *range_mismatch(weights, model)])
    for kind in ("missing", "unexpected", "mismatched"):
        entries: list[str] = getattr(comparison, kind)
        print(f"{kind}: {len(entries)}")
        for entry in entries:
            print(f"  {entry}")
    return comparison


def key_revision(text: str) -> tuple[str, str]:
    """Parse `PATTERN=REPLACEMENT`."""
    pattern, sign, replacement = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=REPLACEMENT")
    try:
        re.sub(pattern, replacement, "")
    except (re.error, IndexError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None
    return pattern, replacement


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".pth file")
    parser.add_argument(
        "--revise-keys",
        nargs="+",
        type=key_revision,
        default=[],
        metavar="PATTERN=REPLACEMENT",
        help=r"rename the file's keys first, e.g. '^backbone\.=img_backbone.'",
    )

    def compare(args: argparse.Namespace) -> int:
        comparison = inspect(args.config, args.checkpoint, args.cfg_options, args.revise_keys)
        return 0 if comparison.fits else 1

    return run_command(parser, compare, arguments)
