"""Write only the weights of a checkpoint in half precision, for distribution.

    python scripts/shrink_checkpoint.py work_dirs/X/last.pth --out pretrain/x.pth

Integer tensors and tensors with fewer than 16 values, such as the range of a grid, are not
converted. The file is read like any other checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scripts.runtime.atomic_write import check_file_target
from scripts.runtime.checkpoint import CheckpointError, file_sha256, read_checkpoint
from scripts.runtime.checkpoint_files import write_checkpoint
from scripts.runtime.command_line import CommandParser, run_command

_EXACT_BELOW = 16


def shrink(source: str, out: str) -> None:
    """Write the file and print its size.

    Raises:
        CheckpointError: The source is not a checkpoint, or a weight is too large for half
            precision.
    """
    checkpoint = read_checkpoint(source)
    weights = {name: _half(name, value) for name, value in checkpoint["state_dict"].items()}
    meta = checkpoint.get("meta") or {}
    kept = {key: meta[key] for key in ("epoch", "iter", "seed", "time") if key in meta}
    kept |= dict(shrunk_from=file_sha256(source))
    write_checkpoint(dict(state_dict=weights, meta=kept), out)
    size = sum(value.numel() * value.element_size() for value in weights.values())
    print(f"{out}: {len(weights)} entries, {size / 1e6:.2f} MB")


def _half(name: str, value: Tensor) -> Tensor:
    if not value.dtype.is_floating_point or value.numel() < _EXACT_BELOW:
        return value.clone()
    half = value.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise CheckpointError(
            f"{name} has values that half precision cannot represent: distribute the original file"
        )
    return half


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".pth file that train.py wrote")
    parser.add_argument("--out", required=True, metavar="FILE", help=".pth file to write")

    def run(args: object) -> None:
        source, out = vars(args)["checkpoint"], vars(args)["out"]
        check_file_target("--out", out)
        shrink(source, out)

    return run_command(parser, run, arguments)
