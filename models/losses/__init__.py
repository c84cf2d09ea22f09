"""Registered losses."""

from .chamfer_loss import ChamferLoss, Match, OccupiedPoints
from .focal_loss import SigmoidFocalLoss

__all__ = ["ChamferLoss", "Match", "OccupiedPoints", "SigmoidFocalLoss"]
