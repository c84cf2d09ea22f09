"""Importing this module registers every part of the models with MMEngine's registry.

mmdet's ResNet and FPN are named with their scope (``mmdet.ResNet``) and import themselves.
"""

from models import decoder, heads, losses

__all__ = ['decoder', 'heads', 'losses']
