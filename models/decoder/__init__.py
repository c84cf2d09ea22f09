"""The decoder of OPUS: from queries to points and their features."""

from .decoder import DecoderOutput, OPUSDecoder

__all__ = ["DecoderOutput", "OPUSDecoder"]
