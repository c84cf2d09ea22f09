"""A data set, a metric and configs to train the real models in milliseconds.

Samples depend on their index, and their augmentation on (seed, epoch, index). Environment variables
disturb a run: `NANO_SLOW` names a sample that takes minutes to load, `NANO_BAD` a sample with NaN
images, `NANO_SIGNAL` a signal that the process sends itself, `NANO_AT` its time, `NANO_FULL_AT` the
iteration from which the disk appears to be full.
"""

from __future__ import annotations

import copy
import os
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, METRICS

from loaders.shared_memory import share
from tests.models.cases import (
    DETECTOR,
    HEAD,
    HW,
    POINT_HEAD,
    N,
    T,
    make_points,
    make_sample,
    merge,
    with_lidar,
)

NUM_SAMPLES = 11
BACKBONE = merge(DETECTOR["img_backbone"], base_channels=8, frozen_stages=-1, norm_eval=False)
NECK = merge(DETECTOR["img_neck"], in_channels=[8, 16, 32])
KINDS: dict[str, dict[str, Any]] = dict(
    v1=dict(pts_bbox_head=POINT_HEAD),
    v2=dict(pts_bbox_head=HEAD),
    v2_plus=dict(
        pts_bbox_head=merge(
            HEAD,
            num_seen_queries=12,
            num_seen_points=60,
            seen_level=1,
            decoder=merge(HEAD["decoder"], position_code="where_used"),
        ),
        img_aux_head=dict(type="FirstHitHead"),
    ),
    dcd=dict(pts_bbox_head=merge(HEAD, loss_pts=dict(type="ChamferLoss", density_aware=True))),
    v1_fusion=with_lidar(POINT_HEAD),
    v2_fusion=with_lidar(HEAD),
)


@DATASETS.register_module()
class NanoDataset(BaseDataset):
    def __init__(self, num_samples: int = NUM_SAMPLES, use_lidar: bool = False) -> None:
        self.num_samples, self.lidar = num_samples, use_lidar
        self.epoch = share(torch.zeros(1, dtype=torch.int64))
        super().__init__(metainfo=dict(name="nano"))

    def load_data_list(self) -> list[dict]:
        return [dict(index=index) for index in range(self.num_samples)]

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def prepare_data(self, idx: int) -> dict[str, Any]:
        if os.environ.get("NANO_SLOW") == str(idx):
            time.sleep(600)
        rng = np.random.default_rng([0, int(self.epoch), idx])
        sample = make_sample(idx)
        sample.set_metainfo(dict(sample_idx=idx, sample_token=f"token{idx}"))
        image = rng.integers(0, 256, (T * N, 3, *HW), dtype=np.uint8)
        inputs = dict(img=torch.from_numpy(image))
        if rng.random() < 0.5:
            inputs["img"] = inputs["img"].flip(-1)
        if self.lidar:
            inputs["points"] = make_points(idx)
        if os.environ.get("NANO_BAD") in (str(idx), "all"):
            inputs["img"] = inputs["img"] * float("nan")
        return dict(inputs=inputs, data_samples=sample)


@METRICS.register_module()
class NanoMetric(BaseMetric):
    default_prefix = "nano"

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        self.results.extend(len(sample["pred_labels"]) for sample in data_samples)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        record("evaluation", sum(results))
        return dict(voxels=float(sum(results)))


def record(*words: Any) -> None:
    """Append a line to the file that tests evaluate."""
    with open(os.environ["NANO_RECORD"], "a") as stream:
        stream.write(" ".join(map(str, words)) + "\n")


@HOOKS.register_module()
class NanoHook(Hook):
    """Record the samples of every step, and send the process a signal at a chosen place."""

    def _disturb(self, place: str) -> None:
        if os.environ.get("NANO_AT") == place and os.environ.get("RANK", "0") == "0":
            number = getattr(signal, os.environ["NANO_SIGNAL"])
            if os.environ.get("NANO_TO_GROUP"):
                os.killpg(os.getpgid(0), number)
            else:
                os.kill(os.getpid(), number)

    def before_train(self, runner: Any) -> None:
        self._disturb("start")

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        samples = [sample.sample_idx for sample in data_batch["data_samples"]]
        rate = runner.optim_wrapper.get_lr()["lr"][0]
        record("step", runner.epoch, runner.iter, f"{rate:.9e}", *samples)
        self._disturb(f"before{runner.iter}")
        if os.environ.get("NANO_FULL_AT") == str(runner.iter):  # as if the disk were full
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self._disturb(f"after{runner.iter}")

    def after_val_iter(self, runner: Any, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        self._disturb(f"val{runner.epoch}.{batch_idx}")

    def before_val_epoch(self, runner: Any) -> None:
        self._disturb(f"before_val{runner.epoch}")

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        self._disturb(f"save{checkpoint['meta']['iter']}")


CONFIG = """
_base_ = [{runtime!r}]
custom_imports = dict(
    imports=['nano_parts', 'models.register', 'loaders.register', 'scripts.runtime.register'],
    allow_failed_imports=False)
batch_size = 2
max_epochs = 3
model = {model!r}
train_dataloader = dict(
    dataset=dict(type='NanoDataset', use_lidar={lidar}), sampler=dict(type='EpochSampler'),
    collate_fn=dict(type='pseudo_collate'), num_workers={workers}, persistent_workers=True)
val_dataloader = dict(
    batch_size=1, dataset=dict(type='NanoDataset', num_samples=3, use_lidar={lidar}),
    sampler=dict(type='EpochSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'), num_workers=0)
test_dataloader = val_dataloader
val_evaluator = dict(type='NanoMetric')
test_evaluator = val_evaluator
train_cfg = dict(val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=0.1))),
    clip_grad=dict(max_norm=35))
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end=5),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-3, begin=0)]
default_hooks = dict(
    _delete_=True,
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2, save_last=True))
custom_hooks = [dict(type='NanoHook')]
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends, name='visualizer')
"""


def write_config(
    folder: Path, root: Path, kind: str = "v2", workers: int = 1, extra: str = ""
) -> Path:
    """Write a config of a small model; `extra` is appended to it."""
    model = copy.deepcopy(merge(DETECTOR, img_backbone=BACKBONE, img_neck=NECK, **KINDS[kind]))
    model["pts_bbox_head"]["decoder"]["dropout"] = 0.1
    path = folder / f"nano_{kind}.py"
    text = CONFIG.format(
        runtime=str(root / "configs/_base_/default_runtime.py"),
        model=model,
        lidar="fusion" in kind,
        workers=workers,
    )
    path.write_text(text + extra)
    return path
