"""Start of single and distributed processes (torchrun, srun, mpirun): process group, device."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from scripts.runtime.cluster import adopt_cluster_variables
from scripts.runtime.errors import (
    LAUNCHED,
    LOST_PROCESS,
    ConfigError,
    LostProcessError,
    is_lost_connection,
)
from scripts.runtime.parent_process import end_with_parent

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # must exceed the evaluation time of a slow rank

GRACE_S = 3.0  # wait after a broken connection: the launcher must see the failed process first


@dataclass(frozen=True)
class Launch:
    """Rank of this process and number of processes of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_distributed(self) -> bool:
        """Whether this process is part of a process group."""
        return dist.is_available() and dist.is_initialized()

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0


def leave(code: int) -> NoReturn:
    """End a command with an exit code.

    A process of a distributed run skips Python's shutdown. Threads of gloo may still release
    tensors during it. If they request the interpreter's lock at that point, the process aborts with
    "terminate called without an active exception" although the run was complete.
    """
    if "RANK" not in os.environ:
        sys.exit(code)
    atexit._run_exitfuncs()  # data workers, logs
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def launched() -> Iterator[Launch]:
    """Join the process group that the environment describes, if any, for the duration of a context.

    The group is described by the variables of torchrun, `srun` or `mpirun`. The back end is NCCL if
    there are GPUs, and otherwise gloo. mmengine's `init_dist` is not used: it selects a CUDA device
    even for gloo, which fails on a CPU build of torch.

    Raises:
        ConfigError: There are more processes than GPUs on this machine, or the environment is
            invalid.
        LostProcessError: Another process of the group has ended.
    """
    adopt_cluster_variables()
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Launch()
        return
    _end_with_the_launcher()
    launch = Launch(_number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK", "0"))
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        if launch.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {launch.local_rank} has no GPU: this machine has "
                f"{torch.cuda.device_count()}; start at most that many processes"
            )
        torch.cuda.set_device(launch.local_rank)
    try:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, **_restart_store(launch))
    except (dist.DistError, ValueError) as error:  # ValueError: a variable is missing or wrong
        reason = " ".join(str(error).split("\n")[0].split())
        raise ConfigError(
            f"process {launch.rank} cannot join the others ({reason}): check RANK, WORLD_SIZE, "
            "MASTER_ADDR and MASTER_PORT, or start with dist_train.sh and dist_val.sh"
        ) from error
    try:
        yield launch
        # Wait: other processes may still use the connections.
        dist.barrier(device_ids=[launch.local_rank] if backend == "nccl" else None)
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        time.sleep(GRACE_S)
        raise LostProcessError(
            f"{LOST_PROCESS}, see its message: continue with --resume"
        ) from error
    finally:
        dist.destroy_process_group()


def _restart_store(launch: Launch) -> dict[str, Any]:
    """Return the arguments of `init_process_group` for processes that torchrun restarted.

    Its store still holds the addresses of the ended processes under the same names.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, launch.world_size, False, timeout=COLLECTIVE_TIMEOUT)
    prefix = f"restart{restarts}of{launch.world_size}"
    return dict(
        store=dist.PrefixStore(prefix, store), rank=launch.rank, world_size=launch.world_size
    )


def _end_with_the_launcher() -> None:
    """Request SIGTERM on the launcher's death, so that no process is left."""
    if os.environ.get(LAUNCHED):
        end_with_parent()


def _number(name: str, default: str | None = None) -> int:
    text = os.environ.get(name, default)
    if text is None or not text.isdigit():
        raise ConfigError(
            f"the environment variable {name} is '{text}', expected a whole number: unset it, or "
            "start with dist_train.sh and dist_val.sh"
        )
    return int(text)
