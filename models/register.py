"""Registration of every part of the models with MMEngine's registry, at import of this module.

Parts of mmdet are named with their scope (`mmdet.ResNet`); the registry imports mmdet at build.
"""

from models import data_preprocessor, decoder, detectors, heads, layers, losses

__all__ = ["data_preprocessor", "decoder", "detectors", "heads", "layers", "losses"]
