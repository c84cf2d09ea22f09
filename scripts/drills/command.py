"""Disturb trainings at random, resume them, and count losses: `make drill`.

    python scripts/drill.py [--kills 100] [--processes 2] [--model nano]
    python scripts/drill.py --memory 1000 [--model nano]

Small real models are trained on synthetic samples. The disturbances are: killed and frozen
processes, signals, a damaged newest checkpoint, a full disk, and samples that never arrive. After
each of them, training continues with `train.py --resume`. Every completed training is compared with
an undisturbed one. The exit code is 1 if a training was lost or has a different result.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.drills.drill import run_drill
from scripts.drills.memory import drift_table, measure_drift
from scripts.drills.parts import HEADS
from scripts.runtime.command_line import CommandParser, number_from, run_command

MAX_DRIFT = 0.01  # tolerated growth of the resident memory after the warm-up


def command_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(__doc__)
    parser.add_argument("--kills", type=number_from(1), default=100, help="disturbances")
    parser.add_argument(
        "--memory",
        type=number_from(10),
        metavar="N",
        help="instead, measure resident memory over N training steps and N evaluated samples",
    )
    parser.add_argument("--processes", type=number_from(1), default=2, help="processes")
    parser.add_argument("--model", choices=sorted(HEADS), default="nano")
    parser.add_argument("--epochs", type=number_from(1), default=3, help="epochs of six steps each")
    parser.add_argument("--seed", type=number_from(0), default=0, help="seed of the disturbances")
    return parser


def drill(args: argparse.Namespace) -> int:
    """Run the drill and print its table."""
    # Killed processes may still be writing.
    with tempfile.TemporaryDirectory(prefix="drill-", ignore_cleanup_errors=True) as folder:
        if args.memory is not None:
            drifts = measure_drift(Path(folder), model=args.model, steps=args.memory)
            print(drift_table(drifts))
            return int(any(drift.share > MAX_DRIFT for drift in drifts))
        result = run_drill(
            Path(folder),
            kills=args.kills,
            processes=args.processes,
            model=args.model,
            epochs=args.epochs,
            seed=args.seed,
        )
    print(result.table())
    for failure in result.failures:
        print(failure, file=sys.stderr)
    return 0 if result.is_good else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(command_parser(), drill, arguments)
