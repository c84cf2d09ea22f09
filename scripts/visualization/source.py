"""Samples to draw, from a config with a model, with predictions on disk, or with neither.

Dimension letters: Q queries, R points of a query, N cameras, X, Y, Z voxels, n points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, init_default_scope
from numpy.typing import NDArray
from PIL import Image

from loaders.datasets.wrappers import (
    leaf_configs,
    leaf_datasets,
    locate,
    map_leaf_configs,
    with_optional_labels,
)
from loaders.lidar.points import load_dim_of, read_lidar_points
from loaders.predictions import load_prediction, prediction_path
from loaders.sample import OccSample
from loaders.transforms.images import read_whole_image
from loaders.transforms.labels import loads_labels
from scripts.prediction.model import Predictor, test_dataset_config
from scripts.runtime.building import named_config_keys
from scripts.runtime.errors import ConfigError
from scripts.visualization.sample_view import (
    CameraImage,
    Moment,
    QueryPoints,
    SampleView,
    dense_grid,
    without_unknown,
)
from scripts.visualization.scores import sample_scores


@dataclass(frozen=True)
class Wanted:
    """Optional contents of views.

    Attributes:
        images: the camera images.
        truth: the ground truth.
        lidar: the points of the key frame's LiDAR, if its file exists.
        queries: the points that the model's queries predict, if it has any.
    """

    images: bool = False
    truth: bool = False
    lidar: bool = False
    queries: bool = False


class SampleSource:
    """The test split of a config, with predictions of a model or from disk.

    Args:
        cfg: the merged config.
        weights: checkpoint of the config's model, or None.
        predictions: folder with a prediction per sample (see `loaders.predictions`), or None.
            Without both, only the ground truth is drawn.
        wanted: optional contents of views.

    Raises:
        ConfigError: the config has no test split, a part has an unknown key, there is nothing to
            draw, or more than one prediction.
        CheckpointError: the weights cannot be read or belong to another model.
    """

    def __init__(
        self, cfg: Config, weights: str | None, predictions: str | None, wanted: Wanted
    ) -> None:
        _check_choice(weights, predictions, wanted)
        self._wanted = wanted
        self._folder = None if predictions is None else Path(predictions)
        init_default_scope(cfg.get("default_scope", "mmengine"))

        def change(dataset: dict[str, Any]) -> dict[str, Any]:
            return _for_drawing(dataset, weights is not None, wanted.lidar)

        test_cfg = test_dataset_config(cfg)
        dataset_cfg = map_leaf_configs(test_cfg, change)
        if not wanted.truth:
            dataset_cfg = with_optional_labels(dataset_cfg)
        with named_config_keys(cfg):
            self._model = None if weights is None else _build_model(cfg, weights, wanted.queries)
            self._dataset = DATASETS.build(dataset_cfg)
            # From the original config, since drawing may remove the step that defines them.
            columns = [load_dim_of(leaf.get("pipeline") or []) for leaf in leaf_configs(test_cfg)]
            leaves = leaf_datasets(self._dataset)
            self._load_dims = {id(leaf): dim for leaf, dim in zip(leaves, columns, strict=True)}
            scored = weights is not None or predictions is not None
            self._metrics = _build_metrics(cfg) if scored else []
        for metric in self._metrics:
            metric.dataset_meta = dict(self._dataset.metainfo)

    def __len__(self) -> int:
        """Return the number of samples of the split."""
        return len(self._dataset)

    def check_index(self, index: int) -> None:
        """Raise ConfigError if the split has no sample with this index."""
        if not 0 <= index < len(self):
            raise ConfigError(
                f"--index {index} is out of range: the data set has samples 0 to {len(self) - 1}"
            )

    def moment(self, index: int) -> Moment:
        """Return when and where a sample was recorded; reads no file."""
        dataset, inner_index = locate(self._dataset, index)
        info = dataset.get_data_info(inner_index)
        row = info["row"]
        return Moment(
            str(info["scene_name"]), int(dataset.timestamps[row]), dataset.ego2global[row]
        )

    def scene(self, name: str) -> list[int]:
        """Return the indices of a scene's samples, in the order of the data set.

        Raises:
            ConfigError: the split has no such scene.
        """
        names = [self.moment(index).scene_name for index in range(len(self))]
        found = [index for index, other in enumerate(names) if other == name]
        if not found:
            known = list(dict.fromkeys(names))
            near = get_close_matches(name, known, n=3) or known[:3]
            raise ConfigError(
                f"--scene {name} is not among the {len(known)} scenes of the data set: "
                f"choose e.g. {', '.join(near)}"
            )
        return found

    def view(self, index: int) -> SampleView:
        """Load (and predict) one sample.

        Args:
            index: from 0 to the number of samples.

        Raises:
            ConfigError: the index is out of range, or the pipeline loads no labels.
            MissingDataError: a prediction is missing.
            BadDataError: a file of the sample is broken or does not match the config.
        """
        self.check_index(index)
        dataset, inner_index = locate(self._dataset, index)
        raw: OccSample = dataset.get_sample(inner_index)
        item = self._dataset[index]
        labels = item if self._model is None else item["data_samples"]
        if self._wanted.truth and getattr(labels, "voxel_semantics", None) is None:
            raise ConfigError(
                "--vis-gt needs labels, but the test pipeline of the config loads none: "
                "put LoadOcc3DLabels into it"
            )
        predicted, queries = self._predict(item)
        scene = self.moment(index)
        low, size = raw.pc_range, raw.voxel_size
        return SampleView(
            index=index,
            total=len(self),
            scene_name=scene.scene_name,
            sample_token=raw.sample_token,
            class_names=tuple(raw.class_names),
            empty_label=len(raw.class_names),
            grid_min=(float(low[0]), float(low[1]), float(low[2])),
            voxel_size=(float(size[0]), float(size[1]), float(size[2])),
            ego2grid=np.asarray(raw.ego2occ, dtype=np.float64),
            prediction=None if predicted is None else _prediction_grid(predicted, raw),
            truth=(
                without_unknown(_grid(labels, "voxel_semantics"), len(raw.class_names))
                if self._wanted.truth
                else None
            ),
            scored=_grid(labels, "mask_camera"),
            images=_current_images(raw) if self._wanted.images else (),
            scores=() if predicted is None else sample_scores(self._metrics, predicted),
            time_us=scene.time_us,
            ego2global=scene.ego2global,
            lidar=_lidar_points(raw, self._load_dims[id(dataset)]) if self._wanted.lidar else None,
            queries=queries,
        )

    def _predict(self, item: Any) -> tuple[Mapping[str, Any] | None, QueryPoints | None]:
        """Return the sample's fields with a prediction (None without one), and the query points."""
        if self._model is not None:
            return self._model.predict(item)
        if self._folder is None:
            return None, None
        sample: OccSample = item
        path = prediction_path(self._folder, sample.sample_token)
        found = load_prediction(path, sample.grid_shape, len(sample.class_names))
        return {**vars(sample), **found}, None


class _Model:
    """A model that predicts one packed sample at a time.

    Args:
        predictor: the config's model with its weights.
        with_queries: whether to keep the points of the queries.
    """

    def __init__(self, predictor: Predictor, with_queries: bool) -> None:
        self._predictor = predictor
        self._output: Any = None
        model = predictor.model
        if with_queries and hasattr(model, "pts_bbox_head"):
            # The head's output in mode 'tensor' is captured here, before the prediction.
            model.pts_bbox_head.register_forward_hook(self._keep)

    def _keep(self, module: Any, arguments: Any, output: Any) -> None:
        self._output = output

    def predict(self, item: Mapping[str, Any]) -> tuple[dict[str, Any], QueryPoints | None]:
        """Return the data sample's fields with its prediction, and the points of the queries."""
        (sample,) = self._predictor.predict([item])
        if self._output is None:
            return sample.to_dict(), None
        low, high = np.split(np.asarray(sample.metainfo["pc_range"], dtype=np.float32), 2)

        def metres(points: torch.Tensor) -> NDArray[np.float32]:
            return points[0].detach().float().cpu().numpy() * (high - low) + low

        output, self._output = self._output, None
        layers = tuple(metres(points) for points in output.points)
        sampling = tuple(
            points[0].flatten(1, 2).float().cpu().numpy() for points in output.sampling_points
        )
        return sample.to_dict(), QueryPoints(metres(output.init_points), layers, sampling)


def _check_choice(weights: str | None, predictions: str | None, wanted: Wanted) -> None:
    """Raise ConfigError for no content, two predictions of a sample, or points without a model."""
    if weights is None and predictions is None and not wanted.truth:
        raise ConfigError(
            "nothing to draw: set --weights CHECKPOINT, --predictions DIR or --vis-gt"
        )
    if weights is not None and predictions is not None:
        raise ConfigError("--weights and --predictions both specify predictions: leave one out")
    if predictions is not None and not Path(predictions).is_dir():
        raise ConfigError(
            f"folder {predictions} does not exist: set the folder of predictions written by "
            "val.py --save-predictions"
        )


def _for_drawing(dataset_cfg: dict[str, Any], has_model: bool, lidar: bool) -> dict[str, Any]:
    """Return the config of a data set that loads only the drawn contents.

    Args:
        dataset_cfg: Config of a data set that is not a wrapper.
        has_model: Whether a model predicts; if not, its inputs are not loaded.
        lidar: Whether LiDAR points are drawn.
    """
    changed: dict[str, Any] = {}
    if "on_error" in dataset_cfg:
        changed["on_error"] = "raise"  # a replaced sample would be misleading
    if not has_model and "pipeline" in dataset_cfg:
        steps = dataset_cfg["pipeline"]
        changed["pipeline"] = [step for step in steps if loads_labels(str(step["type"]))]
    if not has_model and "num_frames" in dataset_cfg:
        changed["num_frames"] = 1
    if lidar and not dataset_cfg.get("use_lidar"):
        # The points are drawn but not used by the model, so sweeps may be missing.
        steps = changed.get("pipeline", dataset_cfg.get("pipeline", []))
        kept = [step for step in steps if step["type"] not in ("LoadLidarSweeps", "FilterPoints")]
        changed |= dict(use_lidar=True, pipeline=kept)
    return {**dataset_cfg, **changed}


def _build_model(cfg: Config, weights: str, with_queries: bool) -> _Model:
    if cfg.get("model") is None:
        raise ConfigError("the config has no model, but --weights was given")
    return _Model(Predictor(cfg, weights), with_queries)


def _build_metrics(cfg: Config) -> list[Any]:
    """Return the config's metrics."""
    evaluator = cfg.get("test_evaluator") or cfg.get("val_evaluator") or []
    configs = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    return [METRICS.build(config) for config in configs]


def _current_images(sample: OccSample) -> tuple[CameraImage, ...]:
    """Return the images of the current frame.

    Raises:
        MissingDataError: an image is missing.
        BadDataError: an image is broken.
    """
    images: list[CameraImage] = []
    for camera, path, ego2img in zip(
        sample.cameras, sample.img_paths, sample.ego2img, strict=False
    ):
        rgb = np.ascontiguousarray(read_whole_image(path, sample.packed)[:, :, ::-1])
        images.append(CameraImage(camera, Image.fromarray(rgb), ego2img))
    return tuple(images)


def _lidar_points(sample: OccSample, load_dim: int) -> NDArray[np.float32] | None:
    """Return the key frame's LiDAR points in the ego frame, float32 [n, 3]; None if missing."""
    if sample.lidar is None or not Path(sample.lidar.paths[0]).is_file():
        return None
    points = read_lidar_points(sample.lidar.paths[0], load_dim)[:, :3]
    lidar2ego = sample.lidar2ego.astype(np.float32)
    return points @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]


def _prediction_grid(predicted: Mapping[str, Any], sample: OccSample) -> NDArray[np.uint8]:
    return dense_grid(
        _numpy(predicted["pred_coords"]),
        _numpy(predicted["pred_labels"]),
        sample.grid_shape,
        len(sample.class_names),
    )


def _numpy(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _grid(labels: Any, name: str) -> Any:
    """Return a label grid [X, Y, Z] of the sample, None if it is not loaded."""
    value = getattr(labels, name, None)
    return None if value is None else _numpy(value)
