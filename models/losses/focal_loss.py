"""Sigmoid focal loss on any device; mmcv's operation needs CUDA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from models import ops
from models.errors import ModelConfigError


@MODELS.register_module()
class SigmoidFocalLoss(nn.Module):
    """Focal loss over independent sigmoid classifiers (Lin et al., arXiv 1708.02002, Eq. 5).

    Args:
        gamma: Exponent that down-weights easy examples.
        alpha: Weight of the positive class; negatives get `1 - alpha`.
        class_weights: Factor of every class's classifier, for positives and negatives.
        loss_weight: Factor of the result.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float = 0.25,
        class_weights: Sequence[float] | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha
        self.loss_weight = loss_weight
        weights = None if class_weights is None else torch.tensor(class_weights).float()
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        avg_factor: Tensor | float = 1.0,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted sum of the loss divided by `avg_factor`.

        Args:
            logits: `[n, K]`.
            labels: int64 `[n]`; a label outside `[0, K)` is background, positive for no class.
            avg_factor: Divisor of the sum; pass 1 if a `LossNormalizer` divides it later.
            row_weights: `[n]` factor of every row; None for 1.

        Returns:
            Scalar; zero with a graph if `n` is 0.

        Raises:
            ModelConfigError: If there is not one class weight per class.
        """
        weights = logits.new_ones(logits.shape[1])
        if self.class_weights is not None:
            if len(self.class_weights) != logits.shape[1]:
                raise ModelConfigError(
                    f"loss_cls.class_weights has {len(self.class_weights)} entries for "
                    f"{logits.shape[1]} classes."
                )
            weights = self.class_weights.to(logits)
        total = ops.sigmoid_focal_loss(logits, labels, weights, row_weights, self.gamma, self.alpha)
        return self.loss_weight * total / avg_factor
