"""Compare functions with equal results, with and without gradients: time, memory, ceilings."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.common import Report, Timing, timings

Functions = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Row:
    """Hold the timings of every function in one case; the first is called "ours"."""

    case: str
    of: dict[str, Timing]
    gigaflop: float = 0.0  # least work
    gigabytes: float = 0.0  # least traffic

    def ratio(self, other: str) -> float:
        return self.of[other].ms / self.of["ours"].ms


def measure(
    case: str, functions: dict[str, Callable[[], object]], args: argparse.Namespace,
    gigaflop: float = 0.0, gigabytes: float = 0.0,
) -> Row:  # fmt: skip
    measured = timings(list(functions.values()), args.repeats, args.device)
    of = dict(zip(functions, measured, strict=True))
    return Row(case, of, gigaflop, gigabytes)


def forward(
    case: str, functions: Functions, args: argparse.Namespace, gigaflop: float = 0.0,
    gigabytes: float = 0.0, tolerance: float = 0.0,
) -> Row:  # fmt: skip
    """Return a row without gradients. With a tolerance, results must be close to "reference"."""
    calls = {name: without_gradients(function) for name, function in functions.items()}
    row = measure(f"{case} forward", calls, args, gigaflop, gigabytes)
    if tolerance:
        expected = row.of["reference"].result
        for timing in row.of.values():
            torch.testing.assert_close(timing.result, expected, rtol=tolerance, atol=tolerance)
    return row


def both(
    case: str, functions: Functions, leaves: list[Tensor], grad: Tensor, args: argparse.Namespace
) -> Row:
    """Return a row forward and backward, with the gradients of all leaves.

    `grad` is the gradient of the output.
    """

    def with_gradients(function: Callable[[], Tensor]) -> Callable[[], object]:
        # The gradients are not returned, because results stay in memory.
        return lambda: bool(torch.autograd.grad(function(), leaves, grad))

    calls = {name: with_gradients(function) for name, function in functions.items()}
    return measure(f"{case} both", calls, args)


def without_gradients(function: Callable[[], Tensor]) -> Callable[[], object]:
    return torch.no_grad()(function)


def forward_and_backward(
    case: str, functions: Functions, leaves: list[Tensor], args: argparse.Namespace,
    gigaflop: float = 0.0, gigabytes: float = 0.0, tolerance: float = 0.0,
) -> list[Row]:  # fmt: skip
    """Return one row without gradients, and one with the gradients of all leaves."""
    row = forward(case, functions, args, gigaflop, gigabytes, tolerance)
    out = row.of["ours"].result
    assert isinstance(out, Tensor)
    return [row, both(case, functions, leaves, torch.randn_like(out), args)]


def add_table(report: Report, rows: list[Row]) -> None:
    """Add rows of the same functions to a report."""
    for row in rows:
        report.note_runs(row.case, row.of)
    report.write_runs()
    names = list(rows[0].of)
    times, memory = [f"{name} ms" for name in names], [f"{name} MiB" for name in names]
    report.table(["case", *times, *memory, "of the ceiling"])
    for row in rows:
        share = []
        seconds = 1e-3 * row.of["ours"].ms
        if row.gigaflop:
            share.append(f"{row.gigaflop / seconds / report.gigaflops:.0%} of GFLOP/s")
        if row.gigabytes:
            share.append(f"{row.gigabytes / seconds / report.bandwidth:.0%} of GB/s")
        cells = [f"{row.of[name].ms:.1f}" for name in names]
        cells += [f"{row.of[name].mib:.0f}" for name in names]
        report.row(row.case, *cells, ", ".join(share))
    report.line("")


def row_of(rows: list[Row], case: str) -> Row:
    return next(row for row in rows if row.case == case)
