"""From a config (and weights) to samples that can be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from scripts.runtime.checkpoint import load_weights
from scripts.runtime.config import named_config_keys
from scripts.runtime.errors import ConfigError
from scripts.visualization.sample_view import CameraImage, SampleView, dense_grid

# Scores of a sample in the title, as the metrics name them -> as the sheet prints them.
_SCORE_NAMES = {
    "mIoU": "mIoU",
    "IoU": "IoU",
    "RayIoU": "RayIoU",
    "RayIoU@1": "@1 m",
    "RayIoU@2": "@2 m",
    "RayIoU@4": "@4 m",
}


class SampleSource:
    """The test split of a config, with the predictions of a model if there are weights.

    Args:
        cfg: the merged config.
        weights: checkpoint; None to draw ground truth alone.
        with_images: whether views carry the camera images.
        with_truth: whether views carry the ground truth.

    Raises:
        ConfigError: the config has no test split, a part has an unknown key, or there is nothing
            to draw.
        CheckpointError: the weights cannot be read or are another model's.
    """

    def __init__(
        self, cfg: Config, weights: str | None, with_images: bool, with_truth: bool
    ) -> None:
        if weights is None and not with_truth:
            raise ConfigError("nothing to draw: give --weights, --vis-gt, or both")
        self._with_images, self._with_truth = with_images, with_truth
        init_default_scope(cfg.get("default_scope", "mmengine"))
        dataset_cfg = _test_dataset(cfg)
        if weights is None and "num_frames" in dataset_cfg:
            # Nobody looks at the history: do not decode it.
            dataset_cfg["num_frames"] = 1
        with named_config_keys(cfg):
            self._model = None if weights is None else _build_model(cfg, weights)
            self._dataset = DATASETS.build(dataset_cfg)
            self._metrics = [] if weights is None else _build_metrics(cfg, self._dataset.metainfo)

    def __len__(self) -> int:
        """Number of samples of the split."""
        return len(self._dataset)

    def check_index(self, index: int) -> None:
        """Raise ConfigError unless the split has a sample of this index."""
        if not 0 <= index < len(self):
            raise ConfigError(
                f"--index {index} is out of range: the data set has samples 0 to {len(self) - 1}"
            )

    def view(self, index: int) -> SampleView:
        """Load (and predict) one sample.

        Args:
            index: from 0 to the number of samples.

        Raises:
            ConfigError: the index is out of range, or the pipeline loads no labels.
        """
        self.check_index(index)
        item = self._dataset[index]
        sample = item["data_samples"]
        if self._with_truth and "voxel_semantics" not in sample:
            raise ConfigError(
                "--vis-gt needs labels, but the test pipeline of the config loads none: "
                "put LoadOcc3DLabels into it"
            )
        meta = sample.metainfo
        low, high = np.array(meta["pc_range"][:3]), np.array(meta["pc_range"][3:])
        voxel_size = np.array(meta["voxel_size"], dtype=np.float64)
        nx, ny, nz = (int(n) for n in np.round((high - low) / voxel_size))
        empty_label = len(meta["class_names"])
        prediction: NDArray[np.uint8] | None = None
        scores: tuple[tuple[str, float], ...] = ()
        if self._model is not None:
            predicted = self._predict(item)
            prediction = dense_grid(
                _numpy(predicted.pred_coords),
                _numpy(predicted.pred_labels),
                (nx, ny, nz),
                empty_label,
            )
            scores = self._score(predicted)
        return SampleView(
            index=index,
            total=len(self),
            scene_name=str(meta["scene_name"]),
            sample_token=str(meta["sample_token"]),
            class_names=tuple(meta["class_names"]),
            empty_label=empty_label,
            grid_min=(float(low[0]), float(low[1]), float(low[2])),
            voxel_size=(float(voxel_size[0]), float(voxel_size[1]), float(voxel_size[2])),
            ego2grid=_grid(sample, "ego2occ", np.eye(4)).astype(np.float64),
            prediction=prediction,
            truth=_grid(sample, "voxel_semantics", None) if self._with_truth else None,
            scored=_grid(sample, "mask_camera", None),
            images=_current_images(meta["img_paths"]) if self._with_images else (),
            scores=scores,
        )

    def _predict(self, item: Mapping[str, Any]) -> BaseDataElement:
        assert self._model is not None
        with torch.no_grad():
            result: BaseDataElement = self._model.test_step(pseudo_collate([item]))[0]
        return result

    def _score(self, predicted: BaseDataElement) -> tuple[tuple[str, float], ...]:
        """This sample's own scores, by the metrics of the config."""
        if "voxel_semantics" not in predicted:
            return ()
        sample = predicted.to_dict()
        found: dict[str, float] = {}
        for metric in self._metrics:
            found.update(metric.score(metric.count(sample)))
        pairs = ((_SCORE_NAMES[name], found[name]) for name in _SCORE_NAMES if name in found)
        return tuple((name, value) for name, value in pairs if np.isfinite(value))


def _test_dataset(cfg: Config) -> dict[str, Any]:
    """Config of the test split, else of the validation split."""
    for name in ("test_dataloader", "val_dataloader"):
        loader = cfg.get(name)
        if loader is not None and loader.get("dataset") is not None:
            return dict(loader["dataset"])
    raise ConfigError(
        "the config has neither a test_dataloader nor a val_dataloader with a dataset"
    )


def _build_model(cfg: Config, weights: str) -> Any:
    if cfg.get("model") is None:
        raise ConfigError("the config has no model, but --weights was given")
    model = MODELS.build(cfg.model)
    load_weights(model, weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval()


def _build_metrics(cfg: Config, metainfo: Mapping[str, Any]) -> list[Any]:
    """The config's metrics that can score one sample by itself, silenced."""
    evaluator = cfg.get("test_evaluator") or cfg.get("val_evaluator") or []
    configs = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    metrics = []
    for config in configs:
        metric = METRICS.build(config)
        if hasattr(metric, "count") and hasattr(metric, "score"):
            metric.dataset_meta = dict(metainfo)
            metric.log = _no_log
            metrics.append(metric)
    return metrics


def _no_log(message: str) -> None:
    """Drops the tables that metrics write per evaluation: here each sample is one."""


def _current_images(paths: Sequence[str]) -> tuple[CameraImage, ...]:
    """Images of the current frame: the first of each camera (named by its folder).

    Raises:
        ConfigError: an image is missing or broken.
    """
    images: dict[str, CameraImage] = {}
    for path in paths:
        camera = Path(path).parent.name
        if camera in images:
            break
        try:
            with Image.open(path) as file:
                images[camera] = CameraImage(camera, file.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise ConfigError(
                f"image {path} cannot be read ({error}): restore it or leave --vis-input out"
            ) from error
    return tuple(images.values())


def _numpy(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _grid(sample: BaseDataElement, name: str, default: Any) -> Any:
    return _numpy(sample.get(name)) if name in sample else default
