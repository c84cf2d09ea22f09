"""Train the nano models on several numbers of processes with the real train.py.

    python process_equality.py JOBS.json

One process imports everything and forks the processes of each job.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RAW_HW, FINAL_HW = (90, 160), (32, 96)  # of the hand-made data set, and of the network's input


class Job(NamedTuple):
    """A training: total `batch_size`, number of processes and of accumulated parts."""

    name: str
    config: str  # of configs/toy
    processes: int
    batch_size: int = 2
    accumulation: int = 1
    normalizer: str = "batch"
    num_samples: int = 3  # not a multiple: the last step of an epoch repeats some
    epochs: int = 2
    freeze_norms: bool = True


def write_config(job: Job, data_root: str, folder: Path) -> Path:
    """Write the config of a job: a shipped one with all random parts."""
    from scripts.runtime.config import load_config

    options = {
        "data_root": data_root,
        "raw_hw": RAW_HW,
        "final_hw": FINAL_HW,
        "model.pts_bbox_head.decoder.dropout": 0.1,
        "model.pts_bbox_head.num_query": 200,
        # so that there is something to score after few steps
        "model.pts_bbox_head.score_thr": 0.1,
        "grid_mask": dict(type="GridMask", prob=0.7),
        "model.data_preprocessor.distortion.type": "PhotometricDistortion",
        "loss_normalizer": job.normalizer,
        "num_workers": 0,
        "train_dataloader.dataset.indices": list(range(job.num_samples)),
        "batch_size": job.batch_size // job.accumulation,
        "max_epochs": job.epochs,
        "vis_backends": [],
    }
    config = load_config(ROOT / "configs" / "toy" / f"{job.config}.py", options)
    config.optim_wrapper.optimizer = dict(type="SGD", lr=1e-3, momentum=0.9)
    config.optim_wrapper.accumulative_counts = job.accumulation
    config.custom_imports.imports.append("process_equality_parts")
    config.custom_hooks = [dict(type="NotedTraining", freeze_norms=job.freeze_norms)]
    path = folder / "config.py"
    config.dump(path)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_rank(config: Path, folder: Path, rank: int, processes: int, port: int) -> None:
    """Train as one process of a run, then exit."""
    import train

    log = os.open(folder / f"log{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if processes > 1:
        os.environ |= dict(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    code = 1
    try:
        code = train.main(["--config", str(config), "--work-dir", str(folder)])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(job: Job, data_root: str, folder: Path) -> None:
    """Run a job in forked processes."""
    folder.mkdir()
    config, port = write_config(job, data_root, folder), free_port()
    children = []
    for rank in range(job.processes):
        child = os.fork()
        if child == 0:
            run_rank(config, folder, rank, job.processes, port)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        log = (folder / "log0.txt").read_text()
        raise SystemExit(f"{job.name}: exit codes {codes}\n{log[-4000:]}")


def import_everything() -> None:
    """Import everything that a training imports, for all forked processes."""
    import mmdet3d.models  # noqa: F401
    import torch
    from mmengine.config import Config

    import train  # noqa: F401

    torch.set_num_threads(1)

    def plain_text(config: Any) -> str:
        return "".join(f"{key} = {value!r}\n" for key, value in config.to_dict().items())

    Config.pretty_text = property(plain_text)  # mmengine's takes half a second, five times a run


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    import_everything()
    gc.collect()
    gc.freeze()  # mmengine collects garbage for every data set, and would look through all that
    for job in jobs["jobs"]:
        run(Job(*job), jobs["data_root"], Path(jobs["folder"], job[0]))


if __name__ == "__main__":
    main()
