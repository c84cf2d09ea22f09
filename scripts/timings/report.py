"""Tables of a timing, and their content as plain values for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loaders.metrics.tables import format_table
from scripts.timings.measure import Anatomy, Rate
from scripts.timings.stages import DECODER, LAYER_PARTS, STAGES, layer_stage, part_of


@dataclass(frozen=True)
class Timing:
    """All measurements of a model.

    Attributes:
        facts: Descriptions of model, input and machine.
        rates: Rates of all ways to run the model.
        anatomy: Costs of a frame.
    """

    facts: dict[str, Any]
    rates: Sequence[Rate]
    anatomy: Anatomy

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        first = layer_stage(0, "").removesuffix("0: ")
        numbers = {
            int(name.removeprefix(first).split(":")[0])
            for name in self.anatomy.ms
            if name.startswith(first)
        }
        return len(numbers)


def summed(of_stages: dict[str, float]) -> dict[str, float]:
    """Return values by row of the table of stages; the decoder's stages are summed."""
    rows: dict[str, float] = {}
    for stage, value in of_stages.items():
        rows[part_of(stage)] = rows.get(part_of(stage), 0.0) + value
    return rows


def ordered_stages(names: set[str]) -> list[str]:
    """Return the rows of the table of stages in execution order."""
    order = list(STAGES)
    order.insert(order.index("CPD"), DECODER)
    return [name for name in order if name in names]


def rate_table(rates: Sequence[Rate]) -> str:
    """Return the table of rates, with one row per way to run the model."""
    memories = list(dict.fromkeys(name for rate in rates for name in rate.peak_mib))
    rows: list[list[str | float]] = []
    for rate in rates:
        ms = 1e3 / rate.per_second()
        numbers = [ms, *(rate.per_second(p) for p in (50, 10, 90))]
        peaks = [f"{rate.peak_mib.get(name, math.nan):.0f}" for name in memories]
        rows.append([rate.mode, str(rate.samples), *numbers, *peaks])
    header = ["way", "samples", "ms", "frames/s", "10 %", "90 %"]
    return format_table([*header, *(f"{name} MiB" for name in memories)], rows)


def stage_table(anatomy: Anatomy) -> str:
    """Return the table of the stages of a frame."""
    ms, gigaflop = summed(anatomy.ms), summed(anatomy.gigaflop)
    total = sum(ms.values())
    rows: list[list[str | float]] = []
    for name in ordered_stages(set(ms) | set(anatomy.parameters)):
        own = ms.get(name, 0.0)
        parameters = anatomy.parameters.get(name)
        rows.append(
            [
                name,
                own,
                f"{100 * own / total:.0f} %",
                gigaflop.get(name, 0.0),
                "" if parameters is None else parameters / 1e6,
            ]
        )
    rows.append([])
    all_parameters = sum(anatomy.parameters.values()) / 1e6
    rows.append(["sum", total, "100 %", sum(gigaflop.values()), all_parameters])
    return format_table(["stage", "ms", "share", "GFLOP", "M parameters"], rows)


def decoder_table(timing: Timing) -> str:
    """Return the table of the decoder layers' parts in milliseconds."""
    ms, layers = timing.anatomy.ms, range(timing.layers)
    rows: list[list[str | float]] = []
    for part in LAYER_PARTS:
        own = [ms.get(layer_stage(i, part), 0.0) for i in layers]
        rows.append([part, *own, sum(own)])
    rows.append([])
    columns = zip(*(row[1:] for row in rows[:-1]), strict=True)
    rows.append(["sum", *(sum(float(cell) for cell in column) for column in columns)])
    return format_table(["ms of layer", *(str(i + 1) for i in layers), "all"], rows)


def as_text(timing: Timing) -> str:
    """Return all tables."""
    facts = [f"{name}: {value}" for name, value in timing.facts.items() if value not in (None, {})]
    anatomy = timing.anatomy
    parts = [
        "\n".join(facts),
        rate_table(timing.rates),
        f"One frame of a streaming evaluation:\n{stage_table(anatomy)}",
        decoder_table(timing),
    ]
    if anatomy.launches is not None:
        parts.append(
            f"Per frame, the host starts {anatomy.launches:.0f} operations on the device and "
            f"waits for it {anatomy.waits:.0f} times."
        )
    return "\n\n".join(parts)


def as_values(timing: Timing) -> dict[str, Any]:
    """Return the content of the tables, and the single times, for JSON."""
    anatomy = timing.anatomy
    return {
        **timing.facts,
        "rates": [
            {
                "way": rate.mode,
                "samples": rate.samples,
                "batch_size": rate.batch_size,
                "frames_per_second": {
                    "median": rate.per_second(),
                    "p10": rate.per_second(10),
                    "p90": rate.per_second(90),
                },
                "ms": rate.ms,
                "peak_mib": rate.peak_mib,
            }
            for rate in timing.rates
        ],
        "stages_ms": anatomy.ms,
        "gigaflop": anatomy.gigaflop,
        "parameters": anatomy.parameters,
        "launches_per_frame": anatomy.launches,
        "waits_per_frame": anatomy.waits,
    }
