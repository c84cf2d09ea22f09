"""Additional logs of a training: sheets of fixed samples, tables of class scores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization.vis_backend import (
    BaseVisBackend,
    LocalVisBackend,
    MLflowVisBackend,
    TensorboardVisBackend,
    WandbVisBackend,
)
from numpy.typing import NDArray
from PIL import Image

from scripts.runtime.errors import ConfigError
from scripts.visualization.job import spread
from scripts.visualization.sample_view import CameraImage, SampleView, dense_grid, without_unknown
from scripts.visualization.scores import sample_scores
from scripts.visualization.sheet import SheetOptions, compose_sheet

_CLASS_SCORE = re.compile(r"(?P<metric>.+)/IoU_(?P<name>.+)")


@HOOKS.register_module()
class ValidationSheetHook(Hook):
    """Add sheets of fixed validation samples, and the class table, to every evaluation's log.

    The predictions are those of the evaluation, so a sheet costs only its drawing (about half a
    second on one core). Sheets go to all visualisation back ends of the runner: to TensorBoard
    under *Images*, and as PNG files into `vis_data/vis_image`. The table of class scores goes to
    TensorBoard under *Text*, to Weights & Biases as a table, to MLflow as an artifact, and as a
    Markdown file into `vis_data`.

    Args:
        num_samples: Sheets per evaluation, of samples spread evenly over the main process's part of
            the validation split; 0 draws none.
        scale: Size of the sheets, see `scripts.visualization.sheet.SheetOptions`.
        palette: Class colours, see `scripts.visualization.palette.PALETTES`.

    Raises:
        ConfigError: A negative number, or a scale or palette that does not exist.
    """

    priority = "LOW"  # the scores are logged first

    def __init__(self, num_samples: int = 2, scale: float = 0.6, palette: str = "field") -> None:
        if num_samples < 0:
            raise ConfigError(f"num_samples of ValidationSheetHook is {num_samples}: set 0 or more")
        self.num_samples = num_samples
        self.options = SheetOptions(scale, palette=palette)
        self._in_training = False
        self._chosen: frozenset[int] = frozenset()
        self._views: list[SampleView] = []

    def before_train(self, runner: Runner) -> None:
        """Prepare sheets in a training; evaluations by val.py need none."""
        self._in_training = is_main_process()

    def before_val_epoch(self, runner: Runner) -> None:
        """Choose the batches whose first samples are drawn."""
        self._views = []
        count = self.num_samples if self._in_training else 0
        self._chosen = frozenset(spread(count, len(runner.val_dataloader)) if count else ())

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Store the model's prediction of a chosen sample."""
        if batch_idx not in self._chosen or not outputs:
            return
        sample: BaseDataElement = outputs[0]
        if "pred_coords" not in sample or "pc_range" not in sample.metainfo:
            return  # the model does not predict voxels
        images = data_batch["inputs"]["img"][0].cpu()
        scores = sample_scores(runner.val_evaluator.metrics, sample.to_dict())
        total = len(runner.val_dataloader.dataset)
        self._views.append(view_of_sample(sample, images, scores, total))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw and log the sheets."""
        if not self._in_training:
            return
        # As mmengine logs scores: by the number of finished epochs.
        step = runner.epoch
        for number, view in enumerate(self._views):
            try:
                image = compose_sheet(view, self.options).image
            except ValueError as error:
                # A failed picture, e.g. a class without a colour, must not stop a training.
                runner.logger.warning(f"no validation sheets: {error}")
                self.num_samples = 0
                break
            runner.visualizer.add_image(f"val_sheet_{number}", np.asarray(image), step)
        self._views = []
        header, rows = class_rows(metrics or {})
        if rows:
            for backend in runner.visualizer._vis_backends.values():
                log_table(backend, header, rows, step)


def view_of_sample(
    sample: BaseDataElement,
    images: torch.Tensor,
    scores: Sequence[tuple[str, float]],
    total: int,
) -> SampleView:
    """Return the view of a validation sample: the network's input, output and target.

    Args:
        sample: Packed by `PackOccSample`, with the model's prediction.
        images: uint8 [F, 3, H, W] BGR, the network's input (before normalisation); the current
            frame's cameras come first.
        scores: Scores of this sample.
        total: Size of the data set.
    """
    meta = sample.metainfo
    low, high = np.array(meta["pc_range"][:3]), np.array(meta["pc_range"][3:])
    size = np.array(meta["voxel_size"], dtype=np.float64)
    nx, ny, nz = (int(n) for n in np.round((high - low) / size))
    empty_label = len(meta["class_names"])
    ego2occ = _grid(sample, "ego2occ")
    prediction = dense_grid(
        sample.pred_coords.cpu().numpy(),
        sample.pred_labels.cpu().numpy(),
        (nx, ny, nz),
        empty_label,
    )
    truth = _grid(sample, "voxel_semantics")
    return SampleView(
        index=int(meta["sample_idx"]),
        total=total,
        scene_name=str(meta["scene_name"]),
        sample_token=str(meta["sample_token"]),
        class_names=tuple(meta["class_names"]),
        empty_label=empty_label,
        grid_min=(float(low[0]), float(low[1]), float(low[2])),
        voxel_size=(float(size[0]), float(size[1]), float(size[2])),
        ego2grid=np.eye(4) if ego2occ is None else ego2occ.astype(np.float64),
        prediction=prediction,
        truth=None if truth is None else without_unknown(truth, empty_label),
        scored=_grid(sample, "mask_camera"),
        images=_input_images(images, meta["cameras"]),
        scores=tuple(scores),
        time_us=int(meta["img_timestamps"][0]),
    )


def _input_images(images: torch.Tensor, cameras: Sequence[str]) -> tuple[CameraImage, ...]:
    """Return the current frame's images."""
    found: list[CameraImage] = []
    for name, image in zip(cameras, images, strict=False):
        rgb = image.flip(0).permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        found.append(CameraImage(name, Image.fromarray(np.ascontiguousarray(rgb))))
    return tuple(found)


def _grid(sample: BaseDataElement, name: str) -> NDArray[Any] | None:
    return sample.get(name).cpu().numpy() if name in sample else None


def class_rows(metrics: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    """Return the class scores of an evaluation as a header and rows; no rows without scores.

    Args:
        metrics: Results by name; class scores are called `<metric>/IoU_<class>`.
    """
    scores: dict[str, dict[str, float]] = {}
    columns: dict[str, None] = {}
    for key, value in metrics.items():
        match = _CLASS_SCORE.fullmatch(key)
        if match is not None:
            scores.setdefault(match["name"], {})[match["metric"]] = value
            columns[match["metric"]] = None
    header = ["class", *(f"{name} IoU" for name in columns)]
    if not scores:
        return header, []
    scores["mean"] = {
        name: metrics[key]
        for name in columns
        for key in (f"{name}/mIoU", f"{name}/RayIoU")
        if key in metrics
    }
    return header, [
        [name, *(f"{row[c]:.2f}" if c in row else "-" for c in columns)]
        for name, row in scores.items()
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; the row named "mean" in bold."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, *cells in rows:
        lines.append(f"| {' | '.join([f'**{name}**' if name == 'mean' else name, *cells])} |")
    return "\n".join(lines)


def log_table(
    backend: BaseVisBackend, header: Sequence[str], rows: Sequence[Sequence[str]], step: int
) -> None:
    """Log a table of class scores to a visualisation back end, in its own form.

    Back ends without tables are ignored.
    """
    text = markdown_table(header, rows)
    if isinstance(backend, TensorboardVisBackend):
        backend.experiment.add_text("val/classes", text, step)
    elif isinstance(backend, WandbVisBackend):
        wandb = backend.experiment
        table = wandb.Table(columns=list(header), data=[list(row) for row in rows])
        wandb.log({"val/classes": table}, step=step)
    elif isinstance(backend, MLflowVisBackend):
        backend.experiment.log_text(text, f"val_classes_{step}.md")
    elif isinstance(backend, LocalVisBackend):
        folder = Path(backend._save_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"val_classes_{step}.md").write_text(text + "\n")
