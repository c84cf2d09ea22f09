"""Translation of Slurm's and MPI's environment variables to torchrun's."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping

from scripts.runtime.errors import ConfigError

# Rank, number of processes, rank on the machine, processes on the machine. MPI launchers come
# first, because inside a Slurm job Slurm's variables describe MPI's daemons.
_SOURCES = (
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    (
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ""),
    ("SLURM_PROCID", "SLURM_NPROCS", "SLURM_LOCALID", ""),
)
# Values that are equal in all processes of a job and differ between jobs.
_JOB_IDS = ("SLURM_JOB_ID", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID", "PBS_JOBID")
_FIRST_PORT, _NUM_PORTS = 20000, 12000  # below Linux's ephemeral ports


def torchrun_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Translate the variables that `srun` or `mpirun` set.

    Args:
        env: The environment. If it has RANK, torchrun or the user has already described the
            process.

    Returns:
        RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; empty for a single process.

    Raises:
        ConfigError: A variable is not a number, contradicts another, or the machine of the first
            process is unknown.
    """
    if "RANK" in env:
        return {}
    source = next((keys for keys in _SOURCES if env.get(keys[0]) and env.get(keys[1])), None)
    if source is None:
        return {}
    rank_key, size_key, local_key, local_size_key = source
    if rank_key.startswith("SLURM") and _is_batch_script(env):
        return {}
    rank, size = _number(env, rank_key), _number(env, size_key)
    if size <= 1:
        return {}
    if rank >= size:
        raise ConfigError(
            f"{rank_key} is {rank} and {size_key} {size}: start the processes with srun, mpirun, "
            "or dist_train.sh, and set neither by hand"
        )
    local_size = _number(env, local_size_key) if env.get(local_size_key) else None
    local = _number(env, local_key) if env.get(local_key) else rank
    if env.get("SLURM_GPUS_PER_TASK") == "1":
        local = 0  # each process sees only its own GPU
    return dict(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(local),
        MASTER_ADDR=env.get("MASTER_ADDR") or _first_machine(env, size, local_size, rank_key),
        MASTER_PORT=env.get("MASTER_PORT") or str(_port(env)),
    )


def adopt_cluster_variables() -> None:
    """Set the translated variables in the environment of this process."""
    os.environ.update(torchrun_variables(os.environ))


def first_host(node_list: str) -> str:
    """Return the first host of a Slurm node list, e.g. `gpu03` of `gpu[03-05,9],login1`."""
    match = re.match(r"([^\[,]*)(?:\[([^\]]*)\])?([^,\[]*)", node_list.strip())
    assert match is not None  # every part may be empty
    prefix, ranges, suffix = match.groups()
    first = re.split("[-,]", ranges)[0] if ranges else ""
    return f"{prefix}{first}{suffix}"


def _is_batch_script(env: Mapping[str, str]) -> bool:
    """Return whether this is a Slurm batch script or its child, not a task of `srun`."""
    has_step = env.get("SLURM_STEP_ID") or env.get("SLURM_STEPID")
    return env.get("ENVIRONMENT") == "BATCH" and not has_step


def _first_machine(env: Mapping[str, str], size: int, local_size: int | None, rank_key: str) -> str:
    lists = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    nodes = next((env[key] for key in lists if env.get(key)), "")
    counts = [env[k] for k in ("SLURM_STEP_NUM_NODES", "SLURM_NNODES") if env.get(k)]
    is_one_list = bool(nodes) and "," not in nodes and "[" not in nodes
    if local_size == size or (counts and counts[0] == "1") or is_one_list:
        return "127.0.0.1"
    if nodes:
        return first_host(nodes)
    if rank_key.startswith("SLURM"):
        return "127.0.0.1"  # Slurm lists the nodes if there are several
    raise ConfigError(
        f"{rank_key} is set for one of {size} processes, but the machine of the first process is "
        "unknown: set MASTER_ADDR to it (127.0.0.1 on one machine), and MASTER_PORT to a free port"
    )


def _port(env: Mapping[str, str]) -> int:
    """Return the port at which the processes of one job step connect."""
    job = next((env[key] for key in _JOB_IDS if env.get(key)), None)
    if job is None:
        return 29500
    step = env.get("SLURM_STEP_ID") or env.get("SLURM_STEPID") or ""
    return _FIRST_PORT + zlib.crc32(f"{job}.{step}".encode()) % _NUM_PORTS


def _number(env: Mapping[str, str], name: str) -> int:
    text = env[name]
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(
            f"the environment variable {name} is '{text}', expected a whole number: unset it, or "
            "start with dist_train.sh and dist_val.sh"
        )
    return int(text)
