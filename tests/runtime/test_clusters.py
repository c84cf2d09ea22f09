"""Training on clusters: Slurm, MPI, crashes, machines without a shared disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jobs
import nano_parts
import pytest

import train
from scripts.runtime import work_dir_lock
from scripts.runtime.checkpoint import read_checkpoint
from scripts.runtime.cluster import first_host, torchrun_variables
from scripts.runtime.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, ConfigError
from scripts.runtime.launch import Launch
from scripts.runtime.watched_loader import WorkerKilledError, _explain

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SLURM = dict(SLURM_PROCID="3", SLURM_NTASKS="8", SLURM_LOCALID="1", SLURM_JOB_ID="4711")
ONE_MACHINE = dict(MASTER_ADDR="127.0.0.1", LOCAL_RANK="1")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, {}),
        (SLURM | dict(RANK="0"), {}),  # torchrun inside a Slurm job
        (SLURM | dict(SLURM_NTASKS="1"), {}),
        (SLURM | dict(ENVIRONMENT="BATCH"), {}),  # the job's script, not started by srun
        (
            SLURM | dict(ENVIRONMENT="BATCH", SLURM_STEP_ID="0", SLURM_JOB_NODELIST="gpu[07-08]"),
            dict(RANK="3", WORLD_SIZE="8", LOCAL_RANK="1", MASTER_ADDR="gpu07"),
        ),
        (SLURM | dict(SLURM_STEP_NUM_TASKS="4"), dict(RANK="3", WORLD_SIZE="4")),
        (SLURM | dict(SLURM_JOB_NODELIST="n1"), ONE_MACHINE),
        (SLURM | dict(MASTER_ADDR="a", MASTER_PORT="7"), dict(MASTER_ADDR="a", MASTER_PORT="7")),
        (SLURM | dict(SLURM_GPUS_PER_TASK="1"), dict(LOCAL_RANK="0")),
        (
            dict(
                OMPI_COMM_WORLD_RANK="1",
                OMPI_COMM_WORLD_SIZE="2",
                OMPI_COMM_WORLD_LOCAL_RANK="1",
                OMPI_COMM_WORLD_LOCAL_SIZE="2",
                **SLURM,
            ),
            ONE_MACHINE | dict(RANK="1", WORLD_SIZE="2"),
        ),
        (
            dict(PMI_RANK="1", PMI_SIZE="2", MPI_LOCALRANKID="1", MPI_LOCALNRANKS="2"),
            ONE_MACHINE | dict(RANK="1", WORLD_SIZE="2"),
        ),
    ],
)
def test_variables(env: dict[str, str], expected: dict[str, str]) -> None:
    found = torchrun_variables(env)
    assert bool(found) == bool(expected)
    assert {key: found[key] for key in expected} == expected


def test_processes_of_a_job_step_share_a_port_of_their_own() -> None:
    ports = [
        torchrun_variables({**SLURM, "SLURM_PROCID": rank, "SLURM_STEP_ID": step})["MASTER_PORT"]
        for rank, step in (("0", "0"), ("1", "0"), ("0", "1"))
    ]
    assert ports[0] == ports[1] != ports[2]
    assert all(20000 <= int(port) < 32000 for port in ports)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (dict(PMI_RANK="0", PMI_SIZE="2"), "set MASTER_ADDR"),
        (SLURM | dict(SLURM_PROCID="x"), "SLURM_PROCID is 'x', expected a whole number"),
        (SLURM | dict(SLURM_PROCID="8"), "SLURM_PROCID is 8 and SLURM_NTASKS 8"),
    ],
)
def test_variables_that_describe_no_process(env: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        torchrun_variables(env)
    assert words in error.value.sentence


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"), ("n1,n2", "n1"), ("gpu[03-05,9],login", "gpu03"), ("r[1,2]-ib", "r1-ib"),
        ("a.b-c[0010]", "a.b-c0010"),
    ],
)  # fmt: skip
def test_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_two_tasks_of_srun_are_one_training_without_a_common_disk(
    config: Path, tmp_path: Path
) -> None:
    """Each has its own folder, as on two machines; the second resumes the first's file."""
    folders = [tmp_path / "machine0", tmp_path / "machine1"]
    for folder in folders:
        folder.mkdir()

    arguments = ["--config", str(config), "--work-dir", "run", "--resume"]

    def srun(epochs: int, step: int) -> list[str]:
        group = [
            jobs.Job(
                [*arguments, "--cfg-options", f"max_epochs={epochs}"],
                folder / f"{step}.out",
                dict(
                    SLURM_PROCID=str(rank),
                    SLURM_NTASKS="2",
                    SLURM_LOCALID="0",
                    SLURM_JOB_ID=str(os.getpid()),
                    SLURM_STEP_ID=str(step),
                    JOB_FOLDER=str(folder),
                ),
            )
            for rank, folder in enumerate(folders)
        ]
        assert [job.wait() for job in group] == [0, 0], group[1].text()[-3000:]
        return [job.text() for job in group]

    texts = srun(1, 0)
    assert "tiny/samples: 22" in texts[0]  # gathered from both
    assert not list(folders[1].glob("run/*.pth"))
    texts = srun(2, 1)
    assert "run/epoch_1.pth: 1 epochs, 6 iterations done" in texts[0]
    copy = folders[1] / "run/epoch_1.pth"
    assert copy.read_bytes() == (folders[0] / "run/epoch_1.pth").read_bytes()
    assert not list(folders[1].rglob(".dist_test"))
    assert read_checkpoint(folders[0] / "run/epoch_2.pth")["meta"]["iter"] == 12


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[int]:
    """Start a process that trains in the folder `run`."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        work_dir_lock._acquire(tmp_path / "run")
        os.write(writer, b"x")
        time.sleep(600)
        os._exit(0)
    os.read(reader, 1)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_independent_runs_do_not_share_a_work_dir(
    owner: int,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work_dir_lock, "PATIENCE_S", 0.2)
    before = sorted((tmp_path / "run").rglob("*"))
    assert train.main(["--config", str(config), "--work-dir", str(tmp_path / "run")]) == 2
    [line] = [text for text in capsys.readouterr().err.splitlines() if "is in use" in text]
    assert f"in use by another training (process {owner} on " in line and "--work-dir" in line
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("process 1 on a machine that has lost power\n")
    with work_dir_lock.locked_work_dir(run, Launch()):
        assert f"process {os.getpid()} on " in (run / ".lock").read_text()
    assert not (run / ".lock").exists()


def test_a_lost_process_is_one_sentence(config: Path, tmp_path: Path) -> None:
    group = jobs.start_group(2, config, tmp_path / "run", TINY_KILLED=str(tmp_path / "killed"))
    assert [job.wait(300) for job in group] == [EXIT_USER_ERROR, -signal.SIGKILL]
    text = group[0].text()
    assert "train.py [rank 0]: another process of the run has ended" in text
    assert "Traceback" not in text


def dist_train(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", **environment}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), str(ROOT)])
    return subprocess.Popen(
        ["bash", str(ROOT / "dist_train.sh"), *arguments],
        env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_restart_after_a_rank_was_killed(config: Path, tmp_path: Path) -> None:
    """It resumes the checkpoint of the first epoch and ignores files of an older run."""
    run = tmp_path / "run"
    steps = tmp_path / "steps.txt"
    environment = dict(
        MAX_RESTARTS="2", TINY_KILLED=str(tmp_path / "killed"), TINY_STEPS_FILE=str(steps)
    )
    process = dist_train("2", str(config), "--work-dir", str(run), **environment)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text[-3000:]
    assert "train.py [rank 1]: killed by SIGKILL" in text
    assert "train.py: restart 1 of 2 from the last checkpoint" in text
    assert f"resumed {run}/epoch_1.pth: 1 epochs, 6 iterations done" in text
    assert read_checkpoint(run / "epoch_3.pth")["meta"]["iter"] == 18


def test_restart_by_torchrun_itself(config: Path, tmp_path: Path) -> None:
    """Its store still contains the addresses of ended processes."""
    run = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "--max-restarts", "1", str(ROOT / "train.py"), "--resume"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TINY_KILLED": str(tmp_path / "killed")}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *command, "--config", str(config), "--work-dir", str(run)],
        env=env, text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "epoch_1.pth: 1 epochs, 6 iterations done" in done.stdout
    assert read_checkpoint(run / "epoch_3.pth")["meta"]["iter"] == 18


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_signals_to_the_launcher(config: Path, tmp_path: Path, number: signal.Signals) -> None:
    """It forwards them; if it is killed, its processes save and end."""
    run = tmp_path / "run"
    options = ["--cfg-options", "max_epochs=100000"]
    process = dist_train("2", str(config), "--work-dir", str(run), *options)
    assert process.stdout is not None
    for line in process.stdout:
        if "Epoch(train)" in line:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    text, _ = process.communicate(timeout=300)  # until the last process has closed its output
    assert process.returncode == (EXIT_INTERRUPTED if number == signal.SIGUSR1 else -number)
    assert (run / "interrupted.pth").is_file(), text[-3000:]
    assert len(children) >= 2
    assert not any(is_running(child) for child in children)


def is_running(pid: str) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # empty: waits for its parent
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("1m", "no space for a batch in /dev/shm: use fewer workers (num_workers"),
        ("4k", "/dev/shm is full: remove files from it, or make it larger"),
    ],
)
def test_shared_memory_that_is_too_small(tmp_path: Path, size: str, words: str) -> None:
    """Without a check the main process would wait for a batch forever."""
    config = nano_parts.write_config(tmp_path, ROOT)
    job = jobs.start(config, tmp_path / "run", "--cfg-options", "batch_size=11", JOB_SHM=size)
    code = job.wait(300)
    if code == jobs.EXIT_NOT_ALLOWED:
        pytest.skip("needs the rights to mount a file system")
    assert code == EXIT_USER_ERROR, job.text()[-3000:]
    [line] = [text for text in job.text().splitlines() if text.startswith("train.py: ")]
    assert words in line
    assert "Traceback" not in job.text()


def test_a_broken_connection_names_the_killed_worker() -> None:
    """The main process may notice the connection before the system reports the death."""
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    assert worker.pid is not None
    timer = threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL))
    timer.start()
    batches = SimpleNamespace(_workers=[worker])
    with pytest.raises(WorkerKilledError) as error:
        _explain(ConnectionResetError(104, "Connection reset by peer"), batches)
    assert f"data worker {worker.pid} was killed by SIGKILL" in error.value.sentence
    assert "fewer workers" in error.value.sentence
