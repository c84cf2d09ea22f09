"""Registered losses."""

from .chamfer_loss import ChamferLoss, OccupiedPoints
from .focal_loss import SigmoidFocalLoss

__all__ = ["ChamferLoss", "OccupiedPoints", "SigmoidFocalLoss"]
