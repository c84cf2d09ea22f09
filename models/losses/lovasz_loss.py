"""Lovász-softmax loss, a differentiable surrogate of the intersection over union per class.

Dimension letters: n voxels of a sample, K semantic classes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .normalizer import LossTerm


@MODELS.register_module()
class LovaszSoftmaxLoss(nn.Module):
    """Lovász extension of the Jaccard loss (Berman et al., arXiv 1705.08790, Eq. 9 and 11).

    The logits belong to independent sigmoid classifiers. The softmax runs over them and a constant
    0 for the free class; for a single class it equals the sigmoid. The loss of a class is computed
    over all voxels of a sample, then averaged over the classes in the sample and over samples.

    Args:
        loss_weight: Factor of the result.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def term(self, logits: Tensor, labels: Tensor, known: Tensor | None = None) -> LossTerm:
        """Return the sum of the losses of the classes in a sample, and their number.

        Args:
            logits: ``[n, K]``.
            labels: int64 ``[n]``; label K is free.
            known: bool ``[n]``, which voxels to include; None for all.
        """
        num_classes = logits.shape[1]
        scores = F.pad(logits, (0, 1)).softmax(1)[:, :num_classes]
        is_class = F.one_hot(labels, num_classes + 1)[:, :num_classes].to(scores)
        if known is not None:
            is_class = is_class * known[:, None]
            scores = scores * known[:, None]  # excluded voxels have no class and no error
        occurs = is_class.amax(0) if len(labels) else is_class.sum(0)
        if logits.device.type == "cpu":  # elsewhere, selecting classes would synchronise
            present = occurs.nonzero()[:, 0]
            scores, is_class, occurs = scores[:, present], is_class[:, present], occurs[present]
        # classes in rows: sorting and summing along memory is several times as fast
        is_class = is_class.t().contiguous()
        errors = (is_class - scores.t()).abs()
        order = descending_order(errors)
        losses = (errors.gather(1, order) * jaccard_steps(is_class.gather(1, order))).sum(1)
        return LossTerm(self.loss_weight * (losses * occurs).sum(), occurs.sum().double())


@torch.no_grad()
def descending_order(values: Tensor) -> Tensor:
    """Return the indices ``[K, n]`` that sort every row of ``values`` ``[K, n]``, largest first."""
    if values.device.type == "cpu":  # four times as fast as torch's sort
        return torch.from_numpy(np.argsort(-values.numpy(), axis=1))
    return values.sort(dim=1, descending=True).indices


@torch.no_grad()
def jaccard_steps(is_class: Tensor) -> Tensor:
    """Return the increase of the Jaccard loss for every additional wrong voxel.

    Args:
        is_class: 0 or 1 ``[K, n]``, whether a voxel has a class. Column i is the voxel that becomes
            wrong after those before it.

    Returns:
        ``[K, n]``; the sum over the voxels is 1 for each class.
    """
    size = is_class.sum(1, keepdim=True)
    intersection = size - is_class.cumsum(1)
    union = size + (1 - is_class).cumsum(1)
    loss = 1 - intersection / union.clamp(min=1)
    return torch.diff(loss, dim=1, prepend=torch.zeros_like(loss[:, :1]))
