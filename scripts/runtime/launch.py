"""Start of one process or of one among many (torchrun): process group, device, threads."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from scripts.runtime.errors import ConfigError

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # the evaluation of a slow rank must fit in


@dataclass(frozen=True)
class Launch:
    """Place of this process among those of the run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_distributed(self) -> bool:
        """Whether torchrun started this process."""
        return dist.is_available() and dist.is_initialized()

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the messages."""
        return self.rank == 0


def leave(code: int) -> NoReturn:
    """End a command with an exit code.

    One process of a distributed run skips Python's shutdown. Threads of gloo may still release
    tensors then; asking for the interpreter's lock while it shuts down ends the whole process with
    "terminate called without an active exception", after a run that was complete.
    """
    if "RANK" not in os.environ:
        sys.exit(code)
    atexit._run_exitfuncs()  # data workers, logs
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def launched() -> Iterator[Launch]:
    """Join the process group that torchrun describes in the environment; alone without one.

    The group is made here and not by mmengine's `init_dist`, which selects a CUDA device also for
    gloo and so fails on a CPU build of torch. NCCL where there are GPUs, gloo elsewhere.

    Raises:
        ConfigError: More processes than GPUs on this machine, or a wrong environment.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Launch()
        return
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
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    except (dist.DistError, ValueError) as error:  # ValueError: a variable is missing or wrong
        reason = " ".join(str(error).split("\n")[0].split())
        raise ConfigError(
            f"process {launch.rank} cannot join the others ({reason}): check RANK, WORLD_SIZE, "
            "MASTER_ADDR and MASTER_PORT, or start with dist_train.sh and dist_val.sh"
        ) from error
    try:
        yield launch
    finally:
        dist.destroy_process_group()


def _number(name: str, default: str | None = None) -> int:
    text = os.environ.get(name, default)
    if text is None or not text.isdigit():
        raise ConfigError(
            f"the environment variable {name} is '{text}', expected a whole number: unset it, or "
            "start with dist_train.sh and dist_val.sh"
        )
    return int(text)
