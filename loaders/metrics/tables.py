"""Aligned text tables for logs."""

from __future__ import annotations

import math
from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """Format rows as an aligned table: first column left, the others right.

    Args:
        header: Column titles.
        rows: Cells; numbers are written with two decimals, NaN as `-`. An empty row is drawn as a
            horizontal line.
    """

    def text(cell: str | float) -> str:
        if isinstance(cell, str):
            return cell
        return "-" if math.isnan(cell) else f"{cell:.2f}"

    cells = [[text(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells] if row) for i in range(len(header))]
    rule = "-+-".join("-" * width for width in widths)

    def line(row: Sequence[str]) -> str:
        first, *others = (cell for cell in row)
        aligned = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        return " | ".join([first.ljust(widths[0]), *aligned])

    return "\n".join([line(header), rule, *(line(row) if row else rule for row in cells)])
