"""Models, from a batch to predictions. Importing this package imports no other module of it.

`models.ops` holds the native operations, which need torch alone. `models.register` imports
every registered part.
"""

from models.version import __version__

__all__ = ["__version__"]
