"""Transfer of predictions from the device to the host, with one synchronisation.

Dimension letters: n candidates (voxels), B samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Rows of the transfer, 768 KiB; further candidates need a second transfer.
_ROWS_AT_ONCE = 65_536


class Candidates(NamedTuple):
    """Candidate voxels of a batch; those of a sample are adjacent.

    Attributes:
        keep: bool `[n]`.
        sample: int64 `[n]`, the sample of the batch.
        voxel: int64 `[n]`, `(x * Y + y) * Z + z`, below 2**31.
        labels: int64 `[n]`.
        scores: `[n]`.
    """

    keep: Tensor
    sample: Tensor
    voxel: Tensor
    labels: Tensor
    scores: Tensor


class Predicted(NamedTuple):
    """Predictions of a sample, on the host.

    Attributes:
        coords: int64 `[m, 3]` (x, y, z).
        labels: int64 `[m]`.
        scores: `[m]`, single precision.
    """

    coords: Tensor
    labels: Tensor
    scores: Tensor


def bring_back(
    candidates: Candidates, num_samples: int, shape: Sequence[int], extra: Tensor | None = None
) -> tuple[list[Predicted], list[int]]:
    """Copy the kept candidates to the host.

    This synchronises with the device once, and a second time if unusually many are kept.

    Args:
        candidates: On any device.
        num_samples: B.
        shape: Numbers of voxels (X, Y, Z) of the grid.
        extra: int64, further numbers to copy.

    Returns:
        Predictions of every sample, and the extra numbers.
    """
    keep, sample, voxel, labels, scores = candidates
    number = len(keep)
    # Kept rows move to the front, the others past the last row.
    target = torch.where(keep, keep.cumsum(0) - 1, number)
    columns = [voxel.int(), labels.int(), scores.float().view(torch.int32)]
    rows = torch.stack(columns, 1)
    packed = rows.new_zeros(number + 1, 3).index_copy_(0, target, rows)
    each = torch.arange(num_samples, device=keep.device)[:, None]
    header = ((sample == each) & keep).sum(1)
    if extra is not None:
        header = torch.cat([header, extra.flatten()])
    first = min(number, _ROWS_AT_ONCE)
    told = torch.cat([header.int(), packed[:first].flatten()]).cpu()
    numbers = told[: len(header)].tolist()
    counts = numbers[:num_samples]
    total = sum(counts)
    table = told[len(header) :].view(-1, 3)
    if total > first:
        table = torch.cat([table, packed[first:total].cpu()])
    _, y_num, z_num = shape
    found = []
    for own in table[:total].split(counts):
        key, own_labels, own_scores = own.unbind(1)
        rest, z = key.long().div(z_num, rounding_mode="floor"), key.long().remainder(z_num)
        x, y = rest.div(y_num, rounding_mode="floor"), rest.remainder(y_num)
        coords = torch.stack([x, y, z], 1)
        found.append(
            Predicted(coords, own_labels.long(), own_scores.contiguous().view(torch.float32))
        )
    return found, numbers[num_samples:]


def positions(mask: Tensor, count: int) -> Tensor:
    """Return the ascending indices int64 `[count]` of the true elements of a mask `[n]`.

    Unlike `nonzero` it does not synchronise, because the number is given.
    """
    number = len(mask)
    target = torch.where(mask, mask.cumsum(0) - 1, number)
    index = torch.arange(number, device=mask.device)
    return index.new_zeros(number + 1).index_copy_(0, target, index)[:count]
