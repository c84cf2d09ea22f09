"""Registered losses."""

from .chamfer_loss import ChamferLoss, Match, OccupiedPoints
from .focal_loss import SigmoidFocalLoss
from .lovasz_loss import LovaszSoftmaxLoss
from .normalizer import LossNormalizer, LossTerm, LossTerms, normalize_alone

__all__ = [
    "ChamferLoss",
    "LossNormalizer",
    "LossTerm",
    "LossTerms",
    "LovaszSoftmaxLoss",
    "Match",
    "OccupiedPoints",
    "SigmoidFocalLoss",
    "normalize_alone",
]
