"""A cache of bounded size.

This module imports nothing of the project, so every package of the project may import it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """Least-recently-used cache with a limit on the total size of its values.

    Each process has its own cache. It is not thread-safe. Callers must not change returned values.

    Args:
        limit: Largest total size, in the unit of `size_of`; 0 disables caching.
        size_of: Returns the size of a value; by default every value has size 1.
    """

    def __init__(self, limit: int, size_of: Callable[[Value], int] = lambda value: 1) -> None:
        self.limit = limit
        self._size_of = size_of
        self._used = 0
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    @property
    def used(self) -> int:
        """Return the total size of the cached values."""
        return self._used

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __getitem__(self, key: Hashable) -> Value:
        """Return the value under `key` and mark it as the most recently used."""
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def values(self) -> list[Value]:
        """Return the values, least recently used first."""
        return [value for value, _ in self._entries.values()]

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value under `key`; if it is missing, create it with `make()` and cache it."""
        if key in self._entries:
            return self[key]
        value = make()
        self.put(key, value)
        return value

    def put(self, key: Hashable, value: Value) -> None:
        """Cache a value as the most recently used, unless it alone exceeds the limit."""
        _, replaced = self._entries.pop(key, (None, 0))
        self._used -= replaced
        size = self._size_of(value)
        if size > self.limit:
            return
        self._entries[key] = value, size
        self._used += size
        while self._used > self.limit:
            _, (_, dropped) = self._entries.popitem(last=False)
            self._used -= dropped

    def drop(self, key: Hashable) -> None:
        """Remove a value if it is cached."""
        _, size = self._entries.pop(key, (None, 0))
        self._used -= size

    def clear(self) -> None:
        """Remove all values."""
        self._entries.clear()
        self._used = 0
