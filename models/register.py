"""Importing this module registers every part of the models with MMEngine's registry.

mmdet's parts are named with their scope (`mmdet.ResNet`), which imports them when they are built.
"""

from models import data_preprocessor, decoder, detectors, heads, layers, losses

__all__ = ["data_preprocessor", "decoder", "detectors", "heads", "layers", "losses"]
