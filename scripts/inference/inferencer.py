"""The Inferencer: a trained model for frames of any rig, one by one or as a stream."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.infer import BaseInferencer
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from PIL import Image

from scripts.inference.result import Grid, OccupancyResult
from scripts.prediction.errors import FrameError
from scripts.prediction.frames import Frame
from scripts.prediction.history import CAMERA_RATE_HZ, HistoryRule, Interval
from scripts.prediction.model import Predictor, choose_device, unread_dataset
from scripts.prediction.stream import FrameStream, StreamSample
from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError


class OccupancyInferencer(BaseInferencer):
    """Predict the occupancy around a vehicle from frames of its cameras, and LiDAR.

    No data set, info file or labels are needed. Images are decoded, resized and cropped by
    the transforms of the config's test pipeline; they may have any size.

    - `inferencer.predict(frame)`: one frame, with its history if that is given.
    - `inferencer.push(frame)`: the next frame of a stream. Past frames are kept as long as
      predictions use them, so that each push computes its own images only.
    - `inferencer(frames)`: MMEngine's interface, for frames that are independent of one another.

    Args:
        config: An MMEngine config file, or a config returned by `load_config`.
        checkpoint: Weights, `.pth` or `.safetensors`; None leaves the model untrained.
        device: Name of a torch device; None uses the GPU if there is one.
        cameras: Names of the rig's cameras in any order, for a rig other than that of the config.
        cfg_options: Fields of the config to replace, by dotted keys.
        interval_s: Seconds between the frames of a prediction; None takes `test_interval` of the
            data set at its cameras' 12 Hz: half a second for nuScenes.
        history: 'time' takes from a stream the frames nearest to those times. 'count' takes every
            `test_interval`-th one, as the data set does; the stream needs its rate then.
        max_stand_in_age_s: For how long the last image of a camera replaces a missing one, in
            seconds.
        cached_frames: Largest number of frames whose features are kept. None keeps all that the
            stream needs; with fewer, some are computed again.
        show_progress: Whether `inferencer(frames)` shows a bar.

    Attributes:
        model: The model, in eval mode.
        grid: Positions of the voxels and meanings of their labels.
        cameras: Names of the cameras, in the order in which the model gets their images.

    Raises:
        ConfigError: The config cannot be used, see `scripts.runtime.config.load_config`.
        CheckpointError: The weights cannot be read or are another model's.
    """

    visualize_kwargs = {"draw"}

    def __init__(
        self,
        config: str | os.PathLike[str] | Config,
        checkpoint: str | os.PathLike[str] | None = None,
        device: str | None = None,
        *,
        cameras: Sequence[str] | None = None,
        cfg_options: Mapping[str, Any] | None = None,
        interval_s: float | None = None,
        history: HistoryRule = "time",
        max_stand_in_age_s: float = 1.0,
        cached_frames: int | None = None,
        show_progress: bool = False,
    ) -> None:
        cfg = _config(config, cameras, cfg_options or {})
        self._source, self._options = config, dict(cfg_options or {})
        if checkpoint is None:
            print_log(
                "no checkpoint was given: the model predicts as it was initialised",
                logger="current",
                level=logging.WARNING,
            )
        if cached_frames is not None and cached_frames < 1:
            raise ConfigError(f"cached_frames is {cached_frames}: give a number from 1 on, or None")
        self._cached_frames = cached_frames
        dataset = self._dataset = unread_dataset(cfg)
        if interval_s is None:
            interval_s = dataset.test_interval / CAMERA_RATE_HZ
        self._interval = Interval(dataset.test_interval, interval_s, history)
        self._max_stand_in_age_s = max_stand_in_age_s
        self._stream = self._new_stream(is_sequence=True)
        shape = np.round(
            (np.array(dataset.pc_range[3:]) - dataset.pc_range[:3]) / dataset.voxel_size
        ).astype(int)
        self.grid = Grid(
            dataset.pc_range,
            dataset.voxel_size,
            (int(shape[0]), int(shape[1]), int(shape[2])),
            dataset.occ_frame,
            dataset.class_names,
        )
        super().__init__(
            model=cfg,
            weights=None if checkpoint is None else os.fspath(checkpoint),
            device=str(choose_device(device)),
            scope=cfg.get("default_scope", "mmengine"),
            show_progress=show_progress,
        )
        self._empty_cache()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Return the names of the cameras, in the order in which the model gets their images."""
        return self._stream.cameras

    @property
    def num_frames(self) -> int:
        """Return the number of frames of a prediction, the current one included."""
        return self._dataset.num_frames

    @property
    def kept_frames(self) -> int:
        """Return the number of past frames of the stream in memory."""
        return self._stream.kept_frames

    # -- one frame -----------------------------------------------------------------------------

    def predict(self, frame: Frame, history: Sequence[Frame] = ()) -> OccupancyResult:
        """Predict one frame; the stream does not change.

        Args:
            frame: The frame.
            history: Frames before it, in the order of their times. Without any, the frame itself
                is used as its past.

        Raises:
            FrameError: A frame cannot be used; the sentence names the camera.
        """
        stream = self._new_stream()
        for past in self._inputs_to_list(history):
            stream.observe(past)
        return self._run([stream.push(frame)])[0]

    # -- a stream ------------------------------------------------------------------------------

    def push(self, frame: Frame) -> OccupancyResult:
        """Predict the next frame of the stream.

        Args:
            frame: Newer than all frames before it. Leave cameras without an image out: their last
                images are used, and the result names them. Calibration may change from frame to
                frame.

        Raises:
            FrameError: The frame cannot be used; the stream is as it was before.
        """
        return self._run([self._stream.push(frame)])[0]

    def observe(self, frame: Frame) -> None:
        """Add the next frame of the stream to the history without a prediction.

        Raises:
            FrameError: The frame cannot be used; the stream is as it was before.
        """
        self._stream.observe(frame)

    def stream(self, frames: Iterable[Frame]) -> Iterator[OccupancyResult]:
        """Predict the frames of a recording one by one, lazily.

        The stream is reset first.
        """
        self.reset()
        for frame in frames:
            yield self.push(frame)

    def reset(self, cameras: Sequence[str] | None = None) -> None:
        """Clear the stream: the next frame is the first of another recording.

        Args:
            cameras: Names of the cameras of another rig, in any number; None keeps the rig.

        Raises:
            ConfigError: `cameras` are given, and the inferencer was made from a config that was
                already loaded.
            FrameError: `cameras` is not a list of distinct names.
        """
        if cameras is not None and _names(cameras) != self.cameras:
            self._change_rig(cameras)
        self._stream.reset()
        self._empty_cache()

    # -- MMEngine's interface ------------------------------------------------------------------

    def _init_model(self, cfg: Config, weights: str | None, device: str) -> Any:
        self.predictor = Predictor(cfg, weights, device)
        return self.predictor.model

    def _init_pipeline(self, cfg: Config) -> Any:
        return lambda frame: self._new_stream().push(frame)

    def _init_collate(self, cfg: Config) -> Any:
        return pseudo_collate

    def _init_visualizer(self, cfg: Config) -> None:
        return None

    def _inputs_to_list(self, inputs: Any) -> list[Frame]:
        if isinstance(inputs, Frame):
            return [inputs]
        if isinstance(inputs, (str, bytes, Mapping)) or not isinstance(inputs, Iterable):
            raise FrameError(f"frames are a {type(inputs).__name__}, expected a Frame or several")
        return list(inputs)

    def preprocess(
        self, inputs: Sequence[Frame], batch_size: int = 1, **kwargs: Any
    ) -> Iterator[list[StreamSample]]:
        """Yield batches of frames, each without history, ready for the model."""
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: give a number from 1 on")
        for start in range(0, len(inputs), batch_size):
            yield [self.pipeline(frame) for frame in inputs[start : start + batch_size]]

    def forward(self, inputs: Sequence[StreamSample], **kwargs: Any) -> list[OccupancyResult]:
        """Predict a batch."""
        return self._run(inputs)

    def visualize(
        self,
        inputs: Sequence[Frame],
        preds: Sequence[OccupancyResult],
        draw: bool = False,
        **kwargs: Any,
    ) -> list[Image.Image] | None:
        """Draw the results of `inferencer(frames, draw=True)`."""
        if not draw:
            return None
        return [result.draw(frame) for result, frame in zip(preds, inputs, strict=True)]

    def postprocess(
        self,
        preds: Sequence[OccupancyResult],
        visualization: list[Image.Image] | None,
        return_datasample: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return `predictions`, and the pictures as `visualization`."""
        return {"predictions": list(preds), "visualization": visualization}

    # ------------------------------------------------------------------------------------------

    def _new_stream(self, is_sequence: bool = False) -> FrameStream:
        return FrameStream(self._dataset, self._interval, self._max_stand_in_age_s, is_sequence)

    def _change_rig(self, cameras: Sequence[str]) -> None:
        """Build the model for other cameras, with the weights of the current one."""
        cfg = _config(self._source, cameras, self._options)
        dataset = unread_dataset(cfg)
        predictor = Predictor(cfg, None, self.predictor.device)
        predictor.model.load_state_dict(self.predictor.model.state_dict())
        predictor.checkpoint = self.predictor.checkpoint
        self.cfg, self._dataset = cfg, dataset
        self.predictor = predictor
        self.model = predictor.model
        self._stream = self._new_stream(is_sequence=True)

    def _run(self, samples: Sequence[StreamSample]) -> list[OccupancyResult]:
        """Predict samples in one batch."""
        self._make_room(self._stream.useful_features())
        found = self.predictor.predict([sample.item for sample in samples], streaming=True)
        return [self._result(each, sample) for each, sample in zip(found, samples, strict=True)]

    def _empty_cache(self) -> None:
        """Clear the cached features, and reset the size of the cache."""
        cache = getattr(self.model, "cache", None)
        if cache is not None:
            least = self._stream.useful_features()
            most = self._cached_frames
            self.model.cache = type(cache)(least if most is None else min(least, most))

    def _make_room(self, frames: int) -> None:
        """Make room in the cache for the features of `frames`; a larger cache starts empty."""
        cache = getattr(self.model, "cache", None)
        if cache is None:
            return
        most = self._cached_frames
        limit = frames if most is None else min(frames, most)
        if cache.limit < limit:
            self.model.cache = type(cache)(limit)

    def _result(self, found: BaseDataElement, sample: StreamSample) -> OccupancyResult:
        current = sample.frames[0]
        ego2grid = np.eye(4)
        if self.grid.frame == "lidar":
            ego2grid = np.linalg.inv(current.lidar2ego)
        return OccupancyResult(
            coords=found.pred_coords.cpu().numpy().astype(np.int64),
            labels=found.pred_labels.cpu().numpy().astype(np.int64),
            scores=found.pred_scores.float().cpu().numpy(),
            grid=self.grid,
            name=current.name,
            time_s=current.time_us * 1e-6,
            frame_times_s=tuple(each.time_us * 1e-6 for each in sample.frames),
            dropped_cameras=dict(current.dropped),
            changed_cameras=current.changed,
            ego2global=current.ego2global,
            ego2grid=ego2grid,
        )


def _config(
    config: str | os.PathLike[str] | Config,
    cameras: Sequence[str] | None,
    options: Mapping[str, Any],
) -> Config:
    if isinstance(config, Config):
        if cameras is not None or options:
            raise ConfigError(
                "cameras and cfg_options change a config file: give its path instead of a config "
                "that is already loaded"
            )
        return config
    options = dict(options)
    if cameras is not None:
        options["cameras"] = list(_names(cameras))
    if not isinstance(config, (str, os.PathLike)):
        raise ConfigError(
            f"config is a {type(config).__name__}: give the path of a config file, or what "
            "load_config returned"
        )
    return load_config(config if isinstance(config, str) else os.fspath(config), options)


def _names(cameras: Sequence[str]) -> tuple[str, ...]:
    is_list = isinstance(cameras, Sequence) and not isinstance(cameras, str)
    if not is_list or not cameras or len(set(map(str, cameras))) != len(cameras):
        raise FrameError(f"cameras is {cameras!r}: give a list of different names")
    return tuple(map(str, cameras))
