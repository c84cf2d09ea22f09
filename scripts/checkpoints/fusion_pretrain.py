"""Merge an image and a LiDAR checkpoint into the initial weights of a fusion model.

    python scripts/gen_fusion_pretrain_model.py --image CKPT --lidar CKPT --out FILE

The image checkpoint provides the backbone (`backbone.*` or `img_backbone.*`, and `img_neck.*` of
this project's camera models). The LiDAR detector provides encoder, backbone and neck
(`pts_middle_encoder.*`, `pts_backbone.*`, `pts_neck.*`). Weights keep their layout; models read all
layouts. The fusion configs start from `pretrain/fusion_pretrain_model.pth`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from scripts.runtime.atomic_write import write_atomically
from scripts.runtime.checkpoint import (
    CheckpointError,
    file_sha256,
    read_checkpoint,
    revised_weights,
)
from scripts.runtime.command_line import CommandParser, run_command

IMAGE_PARTS = {
    "backbone.": "img_backbone.",
    "img_backbone.": "img_backbone.",
    "img_neck.": "img_neck.",
}
LIDAR_PARTS = {name: name for name in ("pts_middle_encoder.", "pts_backbone.", "pts_neck.")}


def pick(
    path: str, parts: Mapping[str, str], needed: Sequence[str]
) -> tuple[dict[str, Tensor], int]:
    """Read the entries of a checkpoint that belong to the given parts.

    Args:
        path: Checkpoint file.
        parts: Key prefixes to take, and their new names.
        needed: New names that must occur.

    Returns:
        The entries, and the number of entries not taken.

    Raises:
        CheckpointError: The file is not a checkpoint, or a needed part is missing.
    """
    weights = revised_weights(read_checkpoint(path))
    picked = {
        new + key.removeprefix(old): value
        for key, value in weights.items()
        for old, new in parts.items()
        if key.startswith(old)
    }
    for name in needed:
        if not any(key.startswith(name) for key in picked):
            sources = " or ".join(f"{old}*" for old, new in parts.items() if new == name)
            raise CheckpointError(
                f"{path} has no entries {sources}: give a checkpoint of a detector that has them"
            )
    return picked, len(weights) - len(picked)


def merge(image: str, lidar: str, out: str) -> None:
    """Write the merged checkpoint and print the number of entries.

    Raises:
        CheckpointError: A file is not a checkpoint, or a needed part is missing.
    """
    merged: dict[str, Tensor] = {}
    for path, parts in ((image, IMAGE_PARTS), (lidar, LIDAR_PARTS)):
        needed = ["img_backbone."] if parts is IMAGE_PARTS else list(parts)
        picked, others = pick(path, parts, needed)
        merged |= picked
        print(f"{path}: {len(picked)} entries taken, {others} not used")
    sources = {path: file_sha256(path) for path in (image, lidar)}
    content = dict(state_dict=merged, meta=dict(merged_from=sources))
    write_atomically(out, lambda path: torch.save(content, path))
    print(f"{out}: {len(merged)} entries written")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser(__doc__)
    parser.add_argument("--image", required=True, metavar="CKPT", help="image detector")
    parser.add_argument("--lidar", required=True, metavar="CKPT", help="LiDAR detector of mmdet3d")
    parser.add_argument("--out", required=True, metavar="FILE", help=".pth file to write")
    return run_command(parser, lambda args: merge(args.image, args.lidar, args.out), arguments)
