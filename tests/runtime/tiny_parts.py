"""A model, a data set and a metric that train in milliseconds.

The model fits y = x @ w. Samples contain their index, so that tests can read the samples of a step.
Environment variables make a run fail or interrupt itself at a chosen iteration.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from loaders.errors import BadDataError
from models import ops

NUM_SAMPLES = 22
DIMENSIONS = 3


@DATASETS.register_module()
class TinyDataset(BaseDataset):
    def __init__(self, bad_file: str | None = None) -> None:
        self.bad_file = bad_file
        super().__init__(metainfo=dict(name="tiny", values=torch.arange(3).numpy()))

    def load_data_list(self) -> list[dict]:
        return [dict(index=index) for index in range(NUM_SAMPLES)]

    def prepare_data(self, idx: int) -> dict[str, Any]:
        is_here = os.environ.get("TINY_BAD_RANK", rank := os.environ.get("RANK", "0")) == rank
        if self.bad_file is not None and idx == 5 and is_here:
            raise BadDataError(f"{self.bad_file} is broken: write it again")
        generator = torch.Generator().manual_seed(idx)
        x = torch.randn(DIMENSIONS, generator=generator)
        sample = BaseDataElement(metainfo=dict(sample_idx=idx), target=x.sum() * 2)
        return dict(inputs=x, data_samples=sample)


def _log_step(indices: Sequence[int]) -> None:
    path = os.environ.get("TINY_STEPS_FILE")
    if path:
        with open(path, "a") as stream:
            stream.write(" ".join(map(str, indices)) + "\n")


def _maybe_disturb(step: int) -> None:
    """Disturb the run at a step; create the file TINY_KILLED when rank 1 kills itself."""
    killed = os.environ.get("TINY_KILLED")
    if killed and os.environ.get("RANK") == "1" and step == 8 and not os.path.exists(killed):
        open(killed, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("RANK", "0") != "0":
        return
    if os.environ.get("TINY_INTERRUPT_AT") == str(step):
        os.kill(os.getpid(), signal.SIGINT)
    if os.environ.get("TINY_CRASH_AT") == str(step):
        raise ZeroDivisionError("a defect in the model")


@MODELS.register_module()
class TinyModel(BaseModel):
    def __init__(self, width: int = DIMENSIONS, with_bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1, bias=with_bias)
        self.steps_in_this_process = 0

    def init_weights(self) -> None:
        nn.init.constant_(self.linear.weight, 0.1)

    def forward(
        self, inputs: list[Tensor], data_samples: list[BaseDataElement], mode: str = "tensor"
    ) -> Any:
        x = torch.stack(list(inputs))
        out = self.linear(x)[:, 0]
        if mode == "predict":
            for y, sample in zip(out, data_samples, strict=True):
                sample.error = float((y - sample.target).abs())
            return data_samples
        if mode == "tensor":
            return out
        self.steps_in_this_process += 1
        _log_step([sample.sample_idx for sample in data_samples])
        _maybe_disturb(self.steps_in_this_process)
        target = torch.stack([sample.target for sample in data_samples])
        return dict(loss=(out - target).square().mean())


@HOOKS.register_module()
class WrongShapesHook(Hook):
    """Call an operation with invalid arguments."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        ops.farthest_point_sampling(torch.zeros(4, 2), 3)


@MODELS.register_module()
class CopyingModel(BaseModel):
    """Predict a part of a sample's occupied voxels, some with another label, without images."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.6))

    def forward(
        self, inputs: dict[str, Any], data_samples: list[BaseDataElement], mode: str = "tensor"
    ) -> list[BaseDataElement]:
        for sample in data_samples:
            generator = torch.Generator().manual_seed(sample.sample_idx)
            coords = (sample.voxel_semantics != 17).nonzero()
            draws = torch.rand(len(coords), 2, generator=generator)
            sample.pred_coords = coords[draws[:, 0] < self.share]
            labels = sample.voxel_semantics[tuple(sample.pred_coords.T)].long()
            kept = draws[draws[:, 0] < self.share]
            sample.pred_labels = torch.where(kept[:, 1] < 0.2, 11, labels)
            sample.pred_scores = kept[:, 1]
        return data_samples


@METRICS.register_module()
class TinyMetric(BaseMetric):
    default_prefix = "tiny"

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        self.results.extend(dict(sample) for sample in data_samples)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        by_index = {result["sample_idx"]: result["error"] for result in results}
        return dict(error=sum(by_index.values()) / len(by_index), samples=len(by_index))


CONFIG = """
_base_ = [{runtime!r}]
custom_imports = dict(
    imports=['tiny_parts', 'scripts.runtime.register'], allow_failed_imports=False)
batch_size = 4
max_epochs = 3
model = dict(type='TinyModel')
train_dataloader = dict(
    dataset=dict(type='TinyDataset'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'), num_workers=0)
val_dataloader = dict(
    batch_size=1, dataset=dict(type='TinyDataset'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'), num_workers=0)
val_evaluator = dict(type='TinyMetric')
train_cfg = dict()
val_cfg = dict()
optim_wrapper = dict(
    type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16',
    optimizer=dict(type='AdamW', lr=0.05), clip_grad=dict(max_norm=35))
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end=5),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-3, begin=0, convert_to_iter_based=True)]
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
"""


def write_config(folder: Path, root: Path) -> Path:
    """Write a config for these parts with the project's runtime settings."""
    path = folder / "tiny.py"
    path.write_text(CONFIG.format(runtime=str(root / "configs/_base_/default_runtime.py")))
    return path
