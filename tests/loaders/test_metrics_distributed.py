"""Metrics of several gloo processes equal those of one process exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Runs in every process: five random samples, split as DefaultSampler splits them.
WORKER = """
import json, os, sys
import numpy as np, torch, torch.distributed as dist
from mmengine.dataset import DefaultSampler
from loaders.metrics.occupancy_metric import OccupancyMetric
from loaders.metrics.ray_iou_metric import RayIoUMetric

rank, world, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if world > 1:
    dist.init_process_group('gloo', init_method='file://' + out + '.store', rank=rank,
                            world_size=world)
rng = np.random.default_rng(0)
pc_range, voxel = (-4., -4., -.4, 4., 4., 2.8), (.4, .4, .4)
samples = []
for i in range(5):
    gt, pred = np.where(rng.random((2, 20, 20, 8)) < .1, rng.integers(0, 17, (2, 20, 20, 8)), 17)
    coords = np.argwhere(pred != 17)
    samples.append(dict(
        sample_idx=i, pc_range=pc_range, voxel_size=voxel, ray_origins=rng.uniform(-1, 1, (2, 3)),
        voxel_semantics=torch.tensor(gt.astype(np.uint8)), mask_camera=torch.tensor(gt % 2 == 1),
        pred_coords=torch.tensor(coords), pred_labels=torch.tensor(pred[tuple(coords.T)])))
result = {}
for metric in (OccupancyMetric(), RayIoUMetric()):
    metric.dataset_meta = dict(class_names=[f'c{i}' for i in range(17)])
    for index in DefaultSampler(samples, shuffle=False):
        metric.process(None, [samples[index]])
    result.update(metric.evaluate(len(samples)))
with open(out + f'.{rank}', 'w') as file:
    json.dump(result, file)
if world > 1:
    dist.barrier()
    dist.destroy_process_group()
"""


def scores(world: int, out: Path) -> list[dict[str, float]]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(world), str(out)],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(world)]


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_numbers(tmp_path):
    (alone,) = scores(1, tmp_path / "one")
    assert alone["ray/RayIoU"] > 0 and alone["occ3d/mIoU"] > 0
    # Five samples over two or three processes: the sampler pads with sample 0.
    assert scores(2, tmp_path / "two") == [alone] * 2
    assert scores(3, tmp_path / "three") == [alone] * 3
