"""Models, from a batch to predictions. Importing this package imports none of its modules.

`models.ops` holds the native operations; they depend only on torch. `models.register` imports
every registered part.
"""

from models.version import __version__

__all__ = ["__version__"]
