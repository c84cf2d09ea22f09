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
        scores = F.pad(logits, (0, 1)).softmax(1).t()
        classes = torch.arange(num_classes, device=labels.device)
        is_class = labels == classes[:, None]
        if known is not None:
            is_class = is_class & known
        occurs = is_class.any(1)
        if logits.device.type == "cpu":  # elsewhere, selecting classes would synchronise
            classes = occurs.nonzero()[:, 0]
            is_class, occurs = is_class[classes], occurs[classes]
        scores = scores[classes]
        errors = torch.where(is_class, 1 - scores, scores)
        if known is not None:
            errors = errors * known  # excluded voxels have no class and no error
        losses = (errors * jaccard_weights(errors, is_class)).sum(1)
        return LossTerm(self.loss_weight * (losses * occurs).sum(), occurs.sum().double())


@torch.no_grad()
def jaccard_weights(errors: Tensor, is_class: Tensor) -> Tensor:
    """Return the weights of the errors in the Lovász extension of the Jaccard loss.

    The weight of a voxel is the increase of the Jaccard loss if it is wrong in addition to all
    voxels with larger errors.

    Args:
        errors: ``[K, n]``, at least 0.
        is_class: bool ``[K, n]``, whether a voxel has a class. Every class occurs, on the CPU.

    Returns:
        ``[K, n]``; the sum over the voxels is 1 for each class that occurs.
    """
    if errors.device.type != "cpu":
        return _weights_by_rank(errors, is_class)
    weights = torch.zeros_like(errors)
    for error, inside, weight in zip(errors, is_class, weights, strict=True):
        # Once all voxels of a class are wrong, the loss is 1. Smaller errors have the weight 0.
        place = (error >= error[inside].amin()).nonzero()[:, 0]
        weight[place] = _weights_by_rank(error[None, place], inside[None, place])[0]
    return weights


def _weights_by_rank(errors: Tensor, is_class: Tensor) -> Tensor:
    if errors.device.type == "cpu":  # faster than torch's sort
        order = torch.from_numpy(np.argsort(-errors.numpy(), axis=1, kind="stable"))
    else:
        order = errors.sort(dim=1, descending=True, stable=True).indices
    wrong_inside = is_class.gather(1, order).cumsum(1, dtype=errors.dtype)
    wrong = torch.arange(1, errors.shape[1] + 1, device=errors.device)
    size = is_class.sum(1, keepdim=True)
    loss = 1 - (size - wrong_inside) / (size + wrong - wrong_inside)
    steps = torch.diff(loss, dim=1, prepend=torch.zeros_like(loss[:, :1]))
    return torch.empty_like(errors).scatter_(1, order, steps)
