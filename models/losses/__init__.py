"""Registered losses."""

from .chamfer_loss import ChamferLoss, Match, OccupiedPoints
from .focal_loss import SigmoidFocalLoss
from .normalizer import LossNormalizer, LossTerm, LossTerms, normalize_alone

__all__ = [
    "ChamferLoss",
    "LossNormalizer",
    "LossTerm",
    "LossTerms",
    "Match",
    "OccupiedPoints",
    "SigmoidFocalLoss",
    "normalize_alone",
]
