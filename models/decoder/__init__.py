"""The decoder of OPUS, which predicts points and their features from queries."""

from .decoder import DecoderOutput, OPUSDecoder
from .sampling import FeatureMaps

__all__ = ["DecoderOutput", "FeatureMaps", "OPUSDecoder"]
