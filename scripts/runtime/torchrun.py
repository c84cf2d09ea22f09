"""Start N processes of an entry point; used by `dist_train.sh` and `dist_val.sh`.

    python -m scripts.runtime.torchrun N SCRIPT [arguments of SCRIPT]

This is torchrun with readable errors: an error message of several processes is printed once, and
the exit code is that of the process that failed first. NNODES, NODE_RANK, MASTER_ADDR and
MASTER_PORT describe a run on several machines. MAX_RESTARTS limits the restarts after processes
crashed or were killed; after a restart, train.py resumes the last saved checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.runtime.errors import (
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    LAUNCHED,
    LOST_PROCESS,
    RESTARTS,
    ConfigError,
    run_entry_point,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
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
        ConfigError: A number in the arguments or the environment is invalid.
    """
    if len(words) < 2:
        raise ConfigError("give the number of processes and the script that they run")
    processes = _count(words[0], "the number of processes")
    machines = _machines()
    restarts = _count(os.environ.get("MAX_RESTARTS", "0"), "MAX_RESTARTS", 0)
    if restarts and "--standalone" not in machines:
        raise ConfigError(
            "MAX_RESTARTS works on one machine only, and NNODES is not 1: leave it "
            "out and start all machines again with --resume, or use torchrun with --max-restarts, "
            "--rdzv-backend c10d and --resume"
        )
    # SIGUSR1 and SIGUSR2 stop a training, see `StopSignals`: forward them.
    signals = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
    options = [*machines, "--signals_to_handle", signals]
    options += ["--nproc_per_node", str(processes), *words[1:]]
    # torchrun would set one thread per process; divide the cores instead.
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    os.environ[LAUNCHED] = str(time.time())

    script = Path(words[1]).name
    for restart in range(restarts + 1):
        os.environ[RESTARTS] = str(restart)
        code, is_final = _run_once(options, script)
        if is_final or restart == restarts:
            break
        print(
            f"{script}: restart {restart + 1} of {restarts} from the last checkpoint",
            file=sys.stderr,
        )
    return code


def _run_once(options: Sequence[str], script: str) -> tuple[int, bool]:
    """Start the processes and wait for them.

    Returns:
        The exit code, and whether a restart cannot help.
    """
    from torch.distributed import DistError, run  # slow to import: check arguments first
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _quieten()
    try:
        run.run(run.parse_args(options))
    except ChildFailedError as error:
        failures = _causes(error.failures)
        first = min(failures.values(), key=lambda failure: failure.timestamp)
        # A killed data worker is retried, like a killed process.
        is_final = first.exitcode in (EXIT_USER_ERROR, EXIT_INTERRUPTED) and not any(
            words in first.message for words in ("was killed by", LOST_PROCESS)
        )
        return _report(script, failures, first.exitcode), is_final
    except SignalException:
        return EXIT_INTERRUPTED, True  # the processes have printed the saved checkpoint
    except DistError as error:
        raise ConfigError(
            f"the processes cannot connect at {os.environ.get('MASTER_ADDR', 'localhost')}, port "
            f"{os.environ.get('MASTER_PORT', '29500')} ({_first_line(error)}): set MASTER_ADDR to "
            "the first machine and MASTER_PORT to a port that is free there"
        ) from error
    return 0, True


def _causes(failures: Mapping[int, Any]) -> dict[int, Any]:
    """Return the failures that do not follow from another; all if there are none."""
    causes = {
        rank: failure
        for rank, failure in failures.items()
        if LOST_PROCESS not in failure.message and failure.exitcode != -signal.SIGTERM
    }
    return causes or dict(failures)


def _count(text: str, what: str, low: int = 1) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < low:
        raise ConfigError(f"{what} is '{text}', expected a whole number from {low}")
    return int(text)


def _machines() -> list[str]:
    """Return torchrun's options for the machines described by the environment."""
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
    """Suppress torchrun's log of ended processes, which duplicates the report."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.run")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _report(script: str, failures: Mapping[int, Any], code: int) -> int:
    """Print how the processes ended; return the exit code of the run."""
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
        hint = ", possibly because memory ran out" if name == "SIGKILL" else ""
        print(f"{script} [rank {killed}]: killed by {name}{hint}", file=sys.stderr)
        return 1
    return code


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
