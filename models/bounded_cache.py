"""A cache of bounded size.

It stands here, without any import of this project, since every room of the project may import it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """Keeps values up to a total size; the least recently used ones are dropped first.

    Every process has its own. It is not safe to use one from several threads. Callers must not
    change the values that they get.

    Args:
        limit: Total size of what is kept, in the unit of `size_of`; 0 keeps nothing.
        size_of: Size of a value; by default every value has the size 1.
    """

    def __init__(self, limit: int, size_of: Callable[[Value], int] = lambda value: 1) -> None:
        self.limit = limit
        self._size_of = size_of
        self._used = 0
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    @property
    def used(self) -> int:
        """Total size of what is kept."""
        return self._used

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __getitem__(self, key: Hashable) -> Value:
        """Return the value under `key`, which thereby is the most recently used one."""
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value under `key`, from `make()` if it is not kept."""
        if key in self._entries:
            return self[key]
        value = make()
        self.put(key, value)
        return value

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value as the most recently used one, unless it alone is larger than the limit."""
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

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()
        self._used = 0
