"""The decoder of OPUS: from queries to points and their features."""

from .decoder import DecoderOutput, OPUSDecoder
from .sampling import FeatureMaps

__all__ = ["DecoderOutput", "FeatureMaps", "OPUSDecoder"]
