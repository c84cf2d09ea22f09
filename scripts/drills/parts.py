"""A data set, hooks and a config to train the real models on synthetic samples in seconds.

Dimensions: T frames, N cameras, H x W pixels; X x Y x Z voxels.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, METRICS
from mmengine.structures import BaseDataElement
from torch import Tensor

from loaders.shared_memory import share
from scripts.runtime import stop_signals

# Environment variables that disturb or record a run.
RECORD = "DRILL_RECORD"  # file that lists the steps of a process
SLOW = "DRILL_SLOW"  # index of a sample that takes ten minutes to load
FULL = "DRILL_FULL"  # file size limit in bytes from the first step on: emulates a full disk
GRACE = "DRILL_GRACE"  # seconds that processes wait for samples after a signal
MEMORY = "DRILL_MEMORY"  # file that lists the resident memory in bytes after every iteration

NUM_FRAMES, NUM_CAMERAS, IMAGE_SIZE = 2, 6, (64, 96)
GRID = (20, 15, 4)
NUM_CLASSES = 5
_ROOT = Path(__file__).resolve().parents[2]


@DATASETS.register_module()
class DrillDataset(BaseDataset):
    """Samples that depend only on (epoch, index); neighbours share frames, as in a drive.

    Args:
        num_samples: Number of samples.
    """

    def __init__(self, num_samples: int = 11) -> None:
        self.num_samples = num_samples
        self.epoch = share(torch.zeros(1, dtype=torch.int64))  # shared with the workers
        super().__init__(metainfo=dict(name="drill"))

    def load_data_list(self) -> list[dict]:
        """Return one entry per sample."""
        return [dict(index=index) for index in range(self.num_samples)]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that samples are drawn for."""
        self.epoch.fill_(epoch)

    def prepare_data(self, idx: int) -> dict[str, Any]:
        """Return images [T*N, 3, H, W] and a sample with cameras and voxel labels [X, Y, Z]."""
        if os.environ.get(SLOW) == str(idx):
            time.sleep(600)
        epoch = int(self.epoch)
        times = [idx - frame + NUM_FRAMES for frame in range(NUM_FRAMES)]
        size = (NUM_CAMERAS, 3, *IMAGE_SIZE)
        images = np.concatenate(
            [np.random.default_rng([1, epoch, t]).integers(0, 256, size, np.uint8) for t in times]
        )
        rng = np.random.default_rng([0, epoch, idx])
        labels = rng.integers(0, NUM_CLASSES, GRID)
        labels[rng.random(GRID) >= 0.2] = NUM_CLASSES
        paths = [f"{epoch}_{t}_{camera}.jpg" for t in times for camera in range(NUM_CAMERAS)]
        sample = BaseDataElement(
            metainfo=dict(
                img_paths=paths, ida_mat=np.eye(4), sample_idx=idx, sample_token=f"drill{idx}"
            )
        )
        sample.ego2img = _cameras()
        sample.ego2occ = torch.eye(4)
        sample.voxel_semantics = torch.from_numpy(labels).to(torch.uint8)
        sample.mask_camera = torch.from_numpy(rng.random(GRID) < 0.7)
        return dict(inputs=dict(img=torch.from_numpy(images)), data_samples=sample)


def _cameras() -> Tensor:
    """Return ego2img [T*N, 4, 4] of a ring of cameras looking outwards."""
    focal, (height, width) = 60.0, IMAGE_SIZE
    matrices = []
    for frame in range(NUM_FRAMES):
        for camera in range(NUM_CAMERAS):
            yaw = 2 * np.pi * camera / NUM_CAMERAS
            cos, sin = float(np.cos(yaw)), float(np.sin(yaw))
            intrinsic = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
            # right, down and forward in the ego frame (x forward, y left, z up), in metres
            rotation = torch.tensor([[sin, -cos, 0.0], [0.0, 0.0, -1.0], [cos, sin, 0.0]])
            matrix = torch.eye(4)
            matrix[:3, :3] = intrinsic @ rotation
            matrix[:3, 3] = matrix[:3, :3] @ torch.tensor([0.3 * frame, 0.0, -1.5])
            matrices.append(matrix)
    return torch.stack(matrices)


@METRICS.register_module()
class DrillMetric(BaseMetric):
    """Metric that counts predicted voxels, because evaluations are disturbed too."""

    default_prefix = "drill"

    def process(self, data_batch: Any, data_samples: Any) -> None:
        """Count the voxels of a batch."""
        self.results.extend(len(sample["pred_coords"]) for sample in data_samples)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Return the sum of the counts."""
        return dict(voxels=float(sum(results)))


@HOOKS.register_module()
class DrillHook(Hook):
    """Hook that lists the steps of a process: epoch, iteration, learning rate, samples."""

    def before_train(self, runner: Any) -> None:
        """Limit file sizes, and shorten the grace period, if the drill requests it."""
        if GRACE in os.environ:
            stop_signals.GRACE_S = float(os.environ[GRACE])
        if FULL in os.environ:
            limit = int(os.environ[FULL])
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Add a line to the list."""
        samples = [str(sample.sample_idx) for sample in data_batch["data_samples"]]
        rate = runner.optim_wrapper.get_lr()["lr"][0]
        line = " ".join([str(runner.epoch), str(runner.iter), f"{rate:.9e}", *samples])
        with open(os.environ[RECORD], "a") as stream:
            stream.write(line + "\n")


@HOOKS.register_module()
class ResidentMemoryHook(Hook):
    """Hook that lists the resident memory of the process, if the drill requests it."""

    def _note(self, phase: str) -> None:
        if MEMORY in os.environ:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            with open(os.environ[MEMORY], "a") as stream:
                stream.write(f"{phase} {pages * resource.getpagesize()}\n")

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Add a line for a training step."""
        self._note("train")

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Add a line for an evaluated sample."""
        self._note("val")


_HEAD: dict[str, Any] = dict(
    pc_range=[-8.0, -6.0, -1.0, 8.0, 6.0, 2.2],
    voxel_size=[0.8, 0.8, 0.8],
    num_classes=NUM_CLASSES,
    empty_label=NUM_CLASSES,
    embed_dims=32,
    num_query=10,
    num_frames=NUM_FRAMES,
    num_cams=NUM_CAMERAS,
    num_levels=3,
    loss_pts=dict(type="ChamferLoss"),
    loss_cls=dict(type="SigmoidFocalLoss", loss_weight=2.0, class_weights=[1] * NUM_CLASSES),
)
_DECODER = dict(type="OPUSDecoder", num_refines=[2, 4], num_points=2, ffn_dims=48, dropout=0.1)
HEADS: dict[str, dict[str, Any]] = {
    "nano": dict(
        _HEAD,
        type="CPDHead",
        point_channels=4,
        decoder=_DECODER,
        densifier=dict(type="CPDDensifier", pfn_channels=[8, 8]),
    ),
    "nano-v1": dict(
        _HEAD,
        type="PointHead",
        decoder=dict(_DECODER, sampling_pattern="scaled_offset", prior_probability=0.01),
    ),
}
_CONFIG = """
_base_ = [{runtime!r}]
custom_imports = dict(imports=['scripts.drills.parts'], allow_failed_imports=False)
batch_size = 2
max_epochs = {epochs}
model = dict(
    type='OPUS', streaming=True, cached_frames=4,
    data_preprocessor=dict(type='OPUSDataPreprocessor'),
    img_backbone=dict(
        type='mmdet.ResNet', depth=18, base_channels=8, num_stages=3, strides=(1, 2, 2),
        dilations=(1, 1, 1), out_indices=(0, 1, 2), frozen_stages=-1, norm_eval=False),
    img_neck=dict(type='mmdet.FPN', in_channels=[8, 16, 32], out_channels=32, num_outs=3),
    pts_bbox_head={head!r})
train_dataloader = dict(
    dataset=dict(type='DrillDataset', num_samples={num_samples}), sampler=dict(type='EpochSampler'),
    collate_fn=dict(type='pseudo_collate'), num_workers=1, persistent_workers=True)
val_dataloader = dict(
    batch_size=1, dataset=dict(type='DrillDataset', num_samples={num_evaluated}),
    sampler=dict(type='EpochSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'), num_workers=0)
val_evaluator = dict(type='DrillMetric')
train_cfg = dict(val_interval=1)
val_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=35))
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end=5),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-3, begin=0)]
default_hooks = dict(
    _delete_=True, logger=dict(type='LoggerHook', interval=1),
    batch_norm=dict(type='BatchNormSyncHook'),
    checkpoint=dict(type='CheckpointHook', max_keep_ckpts=2, save_last=True))
custom_hooks = [dict(type='DrillHook'), dict(type='ResidentMemoryHook')]
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends, name='visualizer')
"""


def write_config(
    folder: Path, model: str, epochs: int, *, num_samples: int = 11, num_evaluated: int = 4
) -> Path:
    """Write the config of a drill.

    Args:
        folder: Folder for the config.
        model: Key of HEADS.
        epochs: Length of the training.
        num_samples: Samples per epoch, two per step.
        num_evaluated: Samples per evaluation, which follows every epoch.
    """
    path = folder / "drill.py"
    runtime = str(_ROOT / "configs" / "_base_" / "default_runtime.py")
    path.write_text(
        _CONFIG.format(
            runtime=runtime,
            epochs=epochs,
            head=HEADS[model],
            num_samples=num_samples,
            num_evaluated=num_evaluated,
        )
    )
    return path
