"""Native operations and their plain-torch twins; needs torch alone.

The library behind them (``python setup.py build_ext --inplace``) is loaded at the first use of an
operation, never at import. Every operation ``<name>`` has a twin ``<name>_reference`` with the
same arguments.
"""

from ._extension import ExtensionError, is_available
from .ray_cast import OccupancyPyramid, RayHits, ray_cast, ray_cast_reference

__all__ = [
    "ExtensionError",
    "OccupancyPyramid",
    "RayHits",
    "is_available",
    "ray_cast",
    "ray_cast_reference",
]
