"""A real training of milliseconds, and its evaluations in TensorBoard."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS
from mmengine.visualization import (
    LocalVisBackend,
    Visualizer,
    WandbVisBackend,
)
from mmengine.visualization.vis_backend import MLflowVisBackend
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.runner import OpusRunner
from scripts.visualization import training_hook
from scripts.visualization.training_hook import (
    ValidationSheetHook,
    class_rows,
    log_table,
    markdown_table,
)
from tests.visualization.conftest import EchoOccupancyModel

TRAINING = """
model = dict(type='TrainableEcho')
loader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'), dataset=test_dataloader['dataset'])
train_dataloader = loader
val_dataloader = loader
test_dataloader = None
val_evaluator = test_evaluator
test_evaluator = None
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
visualizer = dict(type='Visualizer', vis_backends=[
    dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
custom_hooks = [dict(
    type='scripts.visualization.training_hook.ValidationSheetHook',
    num_samples={samples}, scale=0.3)]
default_hooks = dict(checkpoint=None)
log_level = 'WARNING'
"""


@MODELS.register_module(force=True)
class TrainableEcho(EchoOccupancyModel):
    def forward(self, inputs, data_samples, mode="tensor"):
        if mode == "loss":
            return dict(loss=self.weight.square().sum(), d0_loss=self.weight.sum())
        return super().forward(inputs, data_samples, mode)


@pytest.fixture(autouse=True)
def _fresh_mmengine():
    yield
    for manager in (MessageHub, MMLogger, Visualizer):
        manager._instance_dict.clear()


def train(config: Path, work_dir: Path, samples: int) -> EventAccumulator:
    config.write_text(config.read_text() + TRAINING.format(samples=samples))
    cfg = load_config(config)
    cfg.work_dir = str(work_dir)
    OpusRunner.from_cfg(cfg).train()
    (folder,) = work_dir.glob("*/vis_data")
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return events


def test_every_evaluation_shows_the_same_samples(config, tmp_path):
    events = train(config, tmp_path / "work", samples=2)
    assert set(events.Tags()["images"]) == {"val_sheet_0", "val_sheet_1"}
    files = sorted(path.name for path in (tmp_path / "work").glob("*/vis_data/vis_image/*"))
    assert files == [f"val_sheet_{i}_{epoch}.png" for i in (0, 1) for epoch in (1, 2)]
    for tag in ("val_sheet_0", "val_sheet_1"):
        shown = events.Images(tag)
        assert [image.step for image in shown] == [1, 2]
        # This model does not change, so that another sample would be another picture.
        assert shown[0].encoded_image_string == shown[1].encoded_image_string
        picture = Image.open(io.BytesIO(shown[0].encoded_image_string)).convert("RGB")
        pixels = np.asarray(picture).astype(int)
        road = np.abs(pixels - (0, 207, 191)).max(axis=-1) < 24
        missed = np.abs(pixels - (0, 114, 190)).max(axis=-1) < 70
        assert road.mean() > 0.05 and missed.mean() > 0.001, tag
    (table, _) = events.Tensors("val/classes/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert "| driveable_surface | 100.00 |" in text and "| car | 0.00 |" in text
    assert "loss" in events.Tags()["scalars"] and "d0_loss" in events.Tags()["scalars"]


def test_no_samples_are_no_sheets(config, tmp_path):
    events = train(config, tmp_path / "work", samples=0)
    assert events.Tags()["images"] == []
    assert "val/classes/text_summary" in events.Tags()["tensors"]


def test_a_picture_that_fails_does_not_stop_the_training(view, monkeypatch, caplog):
    hook = ValidationSheetHook()
    hook._in_training, hook._views = True, [view]

    def fail(*_):
        raise ConfigError("class 'dragon' has no colour")

    monkeypatch.setattr(training_hook, "compose_sheet", fail)
    log = logging.getLogger("hook")
    board = SimpleNamespace(_vis_backends={})
    with caplog.at_level("WARNING"):
        hook.after_val_epoch(SimpleNamespace(epoch=3, logger=log, visualizer=board), {})
    assert "dragon" in caplog.text
    hook.before_val_epoch(SimpleNamespace(val_dataloader=range(9)))
    assert not hook._chosen


def test_evaluations_without_training_draw_nothing():
    hook = ValidationSheetHook()
    hook.before_val_epoch(SimpleNamespace(val_dataloader=range(9)))
    hook.after_val_iter(SimpleNamespace(), 0, None, [SimpleNamespace()])
    assert not hook._views
    with pytest.raises(ValueError, match="num_samples"):
        ValidationSheetHook(num_samples=-1)


METRICS = {
    "occ3d/mIoU": 10.0, "occ3d/IoU": 50.0, "occ3d/IoU_car": 12.345,
    "ray/IoU_car": 3.0, "ray/IoU_bus": 4.0, "ray/RayIoU": 5.0,
}  # fmt: skip
TABLE = [
    "| class | occ3d IoU | ray IoU |",
    "|---|---|---|",
    "| car | 12.35 | 3.00 |",
    "| bus | - | 4.00 |",
    "| **mean** | 10.00 | 5.00 |",
]


def test_class_table_has_a_column_per_metric():
    assert markdown_table(*class_rows(METRICS)).splitlines() == TABLE
    assert class_rows({"loss": 1.0, "occ3d/IoU": 2.0})[1] == []


def test_class_table_reaches_every_back_end(tmp_path):
    """Record the calls of the libraries by the back ends."""
    logged = {}
    wandb, mlflow, local = (
        kind.__new__(kind) for kind in (WandbVisBackend, MLflowVisBackend, LocalVisBackend)
    )
    wandb._wandb = SimpleNamespace(
        Table=lambda columns, data: [columns, *data],
        log=lambda content, step: logged.update(content, step=step),
    )
    mlflow._mlflow = SimpleNamespace(log_text=lambda text, name: logged.update({name: text}))
    local._save_dir = str(tmp_path / "vis_data")
    for backend in (wandb, mlflow, local):
        backend._env_initialized = True
        log_table(backend, *class_rows(METRICS), step=3)
    assert logged["step"] == 3
    assert logged["val/classes"][:2] == [
        ["class", "occ3d IoU", "ray IoU"],
        ["car", "12.35", "3.00"],
    ]
    assert logged["val_classes_3.md"].splitlines() == TABLE
    assert (tmp_path / "vis_data/val_classes_3.md").read_text().splitlines() == TABLE
