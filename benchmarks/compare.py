"""Rows of functions that compute the same, without gradients and with: time, memory, ceilings."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.common import Report, medians_ms, peak_memory_mb

Functions = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Row:
    """Milliseconds and peak MiB of every function in one case; the first is called "ours"."""

    case: str
    ms: dict[str, float]
    mib: dict[str, float]
    gigaflop: float = 0.0  # of work that must be done
    gigabytes: float = 0.0  # that must be moved

    def ratio(self, other: str) -> float:
        return self.ms[other] / self.ms["ours"]


def measure(
    case: str, functions: dict[str, Callable[[], object]], args: argparse.Namespace,
    gigaflop: float = 0.0, gigabytes: float = 0.0,
) -> Row:  # fmt: skip
    times = medians_ms(list(functions.values()), args.repeats, args.device)
    return Row(
        case,
        dict(zip(functions, times, strict=True)),
        {name: peak_memory_mb(function, args.device) for name, function in functions.items()},
        gigaflop,
        gigabytes,
    )


def without_gradients(function: Callable[[], Tensor]) -> Callable[[], object]:
    return torch.no_grad()(function)


def forward_and_backward(
    case: str, functions: Functions, leaves: list[Tensor], args: argparse.Namespace,
    gigaflop: float = 0.0, gigabytes: float = 0.0,
) -> list[Row]:  # fmt: skip
    """One row without gradients, and one with those by all leaves."""

    def both(function: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(), leaves, grad)

    forward = {name: without_gradients(function) for name, function in functions.items()}
    with torch.no_grad():
        grad = torch.randn_like(next(iter(functions.values()))())
    gradients = {name: both(function) for name, function in functions.items()}
    return [
        measure(f"{case} forward", forward, args, gigaflop, gigabytes),
        measure(f"{case} both", gradients, args),
    ]


def add_table(report: Report, rows: list[Row]) -> None:
    """Add rows of the same functions to a report."""
    names = list(rows[0].ms)
    times, memory = [f"{name} ms" for name in names], [f"{name} MiB" for name in names]
    report.table(["case", *times, *memory, "of the ceiling"])
    for row in rows:
        share = []
        seconds = 1e-3 * row.ms["ours"]
        if row.gigaflop:
            share.append(f"{row.gigaflop / seconds / report.gigaflops:.0%} of GFLOP/s")
        if row.gigabytes:
            share.append(f"{row.gigabytes / seconds / report.bandwidth:.0%} of GB/s")
        cells = [f"{row.ms[name]:.1f}" for name in names]
        cells += [f"{row.mib[name]:.0f}" for name in names]
        report.row(row.case, *cells, ", ".join(share))
    report.line("")


def row_of(rows: list[Row], case: str) -> Row:
    return next(row for row in rows if row.case == case)
