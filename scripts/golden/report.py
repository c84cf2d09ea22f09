"""Results of a comparison: one line per quantity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import UserError

GoldenFile = Mapping[str, npt.NDArray[Any]]
"""Arrays of a reference file by name, as loaded by `numpy.load`."""


class GoldenFileError(UserError, ValueError):
    """A reference file is unreadable, or of a kind that cannot be checked."""


@dataclass(frozen=True)
class Check:
    """One compared quantity.

    Attributes:
        name: Name of the quantity in the file.
        error: Largest error found, in the unit of the tolerance.
        tolerance: Largest error allowed.
    """

    name: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the quantity agrees; False for NaN."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAILED"
        return f"{self.name:<88} {self.error:9.2e} {self.tolerance:8.0e}  {verdict}"


def absolute(name: str, actual: Any, expected: Any, tolerance: float) -> Check:
    """Compare the largest absolute difference of two arrays."""
    return Check(name, _difference(actual, expected), tolerance)


def relative(name: str, actual: Any, expected: Any, tolerance: float) -> Check:
    """Compare the largest difference, relative to the largest expected value."""
    scale = float(np.abs(np.asarray(expected, dtype=np.float64)).max(initial=1e-12))
    return Check(name, _difference(actual, expected) / scale, tolerance)


def quantile(name: str, actual: Any, expected: Any, tolerance: float, part: float = 0.99) -> Check:
    """Compare like `relative`, but only the share `part` of elements with the smallest errors."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        return Check(name, float("inf"), tolerance)
    errors = np.abs(actual - expected) / np.abs(expected).max(initial=1e-12)
    return Check(name, float(np.quantile(errors, part)), tolerance)


def _difference(actual: Any, expected: Any) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape or not np.array_equal(np.isnan(actual), np.isnan(expected)):
        return float("inf")
    return float(np.nan_to_num(np.abs(actual - expected)).max(initial=0.0))
