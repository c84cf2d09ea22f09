"""Start N processes of an entry point, which `dist_train.sh` and `dist_val.sh` do.

    python -m scripts.runtime.torchrun N SCRIPT [arguments of SCRIPT]

This is torchrun with readable ends: a sentence that several processes have ended with is printed
once, and the exit code is that of the process that failed first. NNODES, NODE_RANK, MASTER_ADDR and
MASTER_PORT describe a run on several machines.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.runtime.errors import (
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    LAUNCHED,
    ConfigError,
    run_entry_point,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    codes = [0]

    def run() -> None:
        codes[0] = launch(words)

    return run_entry_point(run, debug="--debug" in words) or codes[0]


def launch(words: Sequence[str]) -> int:
    """Start the processes and wait for them.

    Args:
        words: Number of processes, script, and the script's arguments.

    Returns:
        The exit code of the process that failed first, 0 if none did.

    Raises:
        ConfigError: A number in the arguments or the environment is not usable.
    """
    if len(words) < 2:
        raise ConfigError("give the number of processes and the script that they run")
    processes = _count(words[0], "the number of processes")
    options = [*_machines(), "--nproc_per_node", str(processes), *words[1:]]
    # torchrun would set 1 thread for each process; share the cores instead.
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    os.environ[LAUNCHED] = "1"

    from torch.distributed import DistError, run  # slow to import: wrong numbers are told before
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _quieten()
    try:
        run.run(run.parse_args(options))
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return _report(Path(words[1]).name, error.failures, first.exitcode)
    except SignalException:
        return EXIT_INTERRUPTED  # the processes have told what was saved
    except DistError as error:
        raise ConfigError(
            f"the processes cannot meet at {os.environ.get('MASTER_ADDR', 'localhost')}, port "
            f"{os.environ.get('MASTER_PORT', '29500')} ({_first_line(error)}): set MASTER_ADDR to "
            "the first machine and MASTER_PORT to a port that is free there"
        ) from error
    return 0


def _count(text: str, what: str, low: int = 1) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < low:
        raise ConfigError(f"{what} is '{text}', expected a whole number from {low}")
    return int(text)


def _machines() -> list[str]:
    """Options of torchrun for the machines that the environment describes."""
    nodes = _count(os.environ.get("NNODES", "1"), "NNODES")
    if nodes == 1:
        return ["--standalone"]
    for name in ("NODE_RANK", "MASTER_ADDR"):
        if not os.environ.get(name):
            raise ConfigError(f"NNODES is {nodes} and {name} is not set: set it on each machine")
    rank = _count(os.environ["NODE_RANK"], "NODE_RANK", 0)
    if rank >= nodes:
        raise ConfigError(f"NODE_RANK is {rank}, but NNODES {nodes} allow 0 to {nodes - 1}")
    port = _count(os.environ.get("MASTER_PORT", "29500"), "MASTER_PORT")
    return [
        *("--nnodes", str(nodes), "--node_rank", str(rank)),
        *("--master_addr", os.environ["MASTER_ADDR"], "--master_port", str(port)),
    ]


def _quieten() -> None:
    """Leave out torchrun's log of processes that ended, which repeats what is reported here."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.run")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _report(script: str, failures: dict, code: int) -> int:
    """Print how the processes ended; returns the exit code of the whole."""
    if code == EXIT_USER_ERROR:
        ranks: dict[str, list[int]] = {}
        for rank, failure in sorted(failures.items()):
            if failure.exitcode == EXIT_USER_ERROR:
                ranks.setdefault(failure.message, []).append(rank)
        for sentence, of in ranks.items():
            print(f"{script} [rank {', '.join(map(str, of))}]: {sentence}", file=sys.stderr)
    elif code < 0:
        killed = ", ".join(str(rank) for rank, one in failures.items() if one.exitcode == code)
        name = signal.Signals(-code).name
        hint = ", perhaps for lack of memory" if name == "SIGKILL" else ""
        print(f"{script} [rank {killed}]: killed by {name}{hint}", file=sys.stderr)
        return 1
    return code


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
