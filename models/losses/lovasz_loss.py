"""Lovász-softmax loss, a differentiable surrogate of the intersection over union per class.

Dimension letters: n voxels of a sample, K semantic classes.
"""

from __future__ import annotations

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
        errors = (is_class - scores).abs()
        if known is not None:  # excluded voxels: no class and zero error, so no contribution
            errors = errors * known[:, None]
        errors, order = errors.sort(dim=0, descending=True)
        losses = (errors * jaccard_steps(is_class.gather(0, order))).sum(0)
        occurs = is_class.amax(0) if len(labels) else is_class.sum(0)
        return LossTerm(self.loss_weight * (losses * occurs).sum(), occurs.sum().double())


@torch.no_grad()
def jaccard_steps(is_class: Tensor) -> Tensor:
    """Return the increase of the Jaccard loss for every additional wrong voxel.

    Args:
        is_class: 0 or 1 ``[n, K]``, whether a voxel has a class. Row i is the voxel that becomes
            wrong after the rows before it.

    Returns:
        ``[n, K]``; the sum over the voxels is 1 for each class.
    """
    size = is_class.sum(0)
    intersection = size - is_class.cumsum(0)
    union = size + (1 - is_class).cumsum(0)
    loss = 1 - intersection / union.clamp(min=1)
    return torch.diff(loss, dim=0, prepend=torch.zeros_like(loss[:1]))
