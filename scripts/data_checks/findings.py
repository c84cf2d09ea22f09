"""Counts of findings, with a few examples of each kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from loaders.metrics.tables import format_table

_EXAMPLES = 3


@dataclass
class Findings:
    """Findings by kind.

    Attributes:
        counts: Number of findings of each (what, kind), such as ('image', 'truncated').
        examples: The first sentences of each.
    """

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, what: str, kind: str, sentence: str) -> None:
        """Count one finding."""
        key = (what, kind)
        self.counts[key] = self.counts.get(key, 0) + 1
        examples = self.examples.setdefault(key, [])
        if len(examples) < _EXAMPLES:
            examples.append(sentence)

    def extend(self, found: Iterable[tuple[str, str, str]]) -> None:
        """Count several findings (what, kind, sentence)."""
        for what, kind, sentence in found:
            self.add(what, kind, sentence)

    @property
    def total(self) -> int:
        """Number of findings."""
        return sum(self.counts.values())

    def report(self) -> str:
        """Return a table of the counts, then the examples."""
        if not self.counts:
            return "nothing wrong was found"
        rows = [[what, kind, str(count)] for (what, kind), count in self.counts.items()]
        lines = [format_table(["what", "kind", "count"], rows)]
        for key, examples in self.examples.items():
            lines.append(f"\n{key[0]}, {key[1]} ({self.counts[key]}), first:")
            lines += [f"  {sentence}" for sentence in examples]
        return "\n".join(lines)
