"""The OPUS detector: image network, LiDAR branch and head.

Dimension letters: B batch, T frames (current first), N cameras, L pyramid levels, C channels, H, W
image size, h, w size of a feature map.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor

from models.errors import MissingWeightsError, ModelConfigError, does_not_exist
from models.heads import CameraGeometry, HeadOutput, LidarInput, OccupancyHead, SequenceFrame
from models.layers import convert_layouts_together
from models.losses import LossNormalizer
from models.randomness import SampleDraws

from .feature_cache import FeatureCache, FrameFeatures
from .lidar_branch import build_lidar_branch, lidar_map


@MODELS.register_module()
class OPUS(BaseModel):
    """Occupancy prediction from multi-camera images, and LiDAR, by a sparse set of points.

    Wang et al., "OPUS: Occupancy Prediction Using a Sparse Set", arXiv 2409.09350. Parts are named
    as in published checkpoints. Mixed precision (MMEngine's autocast contexts) reaches the dense
    image and LiDAR networks alone: sparse convolutions, the head and its losses keep the
    precision of their parameters.

    Args:
        img_backbone: Configuration of the image backbone.
        img_neck: Configuration of the feature pyramid.
        pts_bbox_head: Configuration of the head; ``use_lidar`` where there is a LiDAR branch.
        pts_voxel_layer: Configuration of the LiDAR voxeliser; it sees the range of the head.
        pts_middle_encoder: Configuration of mmdet3d's sparse encoder of LiDAR voxels.
        pts_backbone: Configuration of the LiDAR backbone.
        pts_neck: Configuration of the LiDAR neck. The four are given together or not at all.
        img_aux_head: Configuration of a ``FirstHitHead`` that supervises the image network in
            training; None for none, as published.
        grid_mask: Configuration of an augmentation of the network's input; None for none.
        loss_normalizer: What losses are divided by where several processes share a batch, see
            ``LossNormalizer``: ``'batch'``, or ``'rank'`` as the published models were trained.
        stop_prev_grad: Number of frames, from the current one on, whose features carry gradient;
            the others run without gradient and in eval mode. None: all carry it.
        streaming: In eval mode, keep the features of frames, so that a sample pays for the frames
            that were not in the samples before it. Samples need ``img_paths`` (T*N, frame-major)
            and ``ida_mat`` in their metainfo, which together identify an image.
        cached_frames: Frames that streaming keeps.
        data_preprocessor: Configuration of the data preprocessor.
        init_cfg: Initialisation configuration of MMEngine.
    """

    def __init__(
        self,
        img_backbone: dict,
        img_neck: dict,
        pts_bbox_head: dict,
        pts_voxel_layer: dict | None = None,
        pts_middle_encoder: dict | None = None,
        pts_backbone: dict | None = None,
        pts_neck: dict | None = None,
        img_aux_head: dict | None = None,
        grid_mask: dict | None = None,
        loss_normalizer: str = "batch",
        stop_prev_grad: int | None = None,
        streaming: bool = False,
        cached_frames: int = 16,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if stop_prev_grad is not None and stop_prev_grad < 1:
            raise ModelConfigError(
                f"stop_prev_grad must be None or at least 1, got {stop_prev_grad}."
            )
        self.img_backbone = MODELS.build(img_backbone)
        self.img_neck = MODELS.build(img_neck)
        self.pts_bbox_head: OccupancyHead = MODELS.build(pts_bbox_head)
        lidar_configs = dict(
            pts_voxel_layer=pts_voxel_layer,
            pts_middle_encoder=pts_middle_encoder,
            pts_backbone=pts_backbone,
            pts_neck=pts_neck,
        )
        self._add_lidar_branch(lidar_configs, pts_bbox_head["pc_range"])
        self.img_aux_head = None
        if img_aux_head is not None:
            shared = ("num_classes", "empty_label", "pc_range", "voxel_size")
            sizes = {key: pts_bbox_head[key] for key in shared}
            sizes["in_channels"] = self.pts_bbox_head.embed_dims
            self.img_aux_head = MODELS.build(img_aux_head, default_args=sizes)
        self.grid_mask = None if grid_mask is None else MODELS.build(grid_mask)
        self.loss_normalizer = LossNormalizer(loss_normalizer)
        self.stop_prev_grad = stop_prev_grad
        self.streaming = streaming
        self.cache = FeatureCache(cached_frames)
        convert_layouts_together(self)

    def _add_lidar_branch(
        self, configs: Mapping[str, dict | None], pc_range: Sequence[float]
    ) -> None:
        head = self.pts_bbox_head
        parts = build_lidar_branch(configs, pc_range, head.embed_dims)
        for name, module in parts.items():
            self.add_module(name, module)
        self.has_lidar = bool(parts)
        if self.has_lidar != head.use_lidar:
            raise ModelConfigError(
                f"pts_bbox_head.use_lidar is {head.use_lidar} in a model "
                f"{'with' if self.has_lidar else 'without'} a LiDAR branch (pts_voxel_layer ...): "
                "make them agree."
            )

    def init_weights(self) -> None:
        """Initialise the weights as the configuration says.

        Raises:
            MissingWeightsError: If a pretrained checkpoint of the image network is not there.
        """
        for name in ("img_backbone", "img_neck"):
            cfg = getattr(self, name).init_cfg
            path = cfg.get("checkpoint", "") if isinstance(cfg, dict) else ""
            if path and "://" not in path and not Path(path).is_file():
                raise MissingWeightsError(
                    f"The pretrained image network {does_not_exist(path)}: download it, "
                    f"or train from scratch with --cfg-options model.{name}.init_cfg=None."
                )
        super().init_weights()

    def train(self, mode: bool = True) -> OPUS:
        """Set the mode and forget cached features, which other weights may have made."""
        self.cache.clear()
        super().train(mode)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Forget cached features: other weights made them."""
        self.cache.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def forward(
        self, inputs: dict[str, Any], data_samples: list[BaseDataElement], mode: str = "tensor"
    ) -> dict[str, Tensor] | list[BaseDataElement] | HeadOutput:
        """Run the model on the data preprocessor's output.

        Args:
            inputs: ``img``, float ``[B, T*N, 3, H, W]``; with a LiDAR branch also ``points``, a
                float tensor ``[n, 5]`` per sample: x, y, z in metres of the occ frame (BEV
                augmentation included), intensity, and the time lag behind the key frame in
                seconds, exactly 0 for its own points, which come first.
            data_samples: Samples with ``ego2img`` ``[T*N, 4, 4]`` and ``ego2occ`` ``[4, 4]``, and
                in the mode ``'loss'`` the labels the head asks for.
            mode: ``'loss'``, ``'predict'`` or ``'tensor'``.

        Returns:
            The losses by name; the samples with predictions added; or the raw outputs.

        Raises:
            ValueError: If the mode is unknown.
            ModelConfigError: If a model with a LiDAR branch gets no points.
        """
        if mode not in ("loss", "predict", "tensor"):
            raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', got {mode!r}.")
        images = inputs["img"]
        geometry = CameraGeometry(
            ego2img=torch.stack([sample.ego2img for sample in data_samples]),
            ego2occ=torch.stack([sample.ego2occ for sample in data_samples]),
            img_hw=(images.shape[-2], images.shape[-1]),
        )
        feats = self.extract_feat(images, data_samples)
        lidar = self.extract_lidar(inputs.get("points")) if self.has_lidar else None
        with torch.autocast(images.device.type, enabled=False):
            draws = SampleDraws.of(data_samples).part("decoder") if self.training else None
            frames = None
            if self.pts_bbox_head.memory is not None:
                frames = [SequenceFrame.of(sample) for sample in data_samples]
            seen = self._seen_points(feats, geometry)
            output = self.pts_bbox_head(feats, geometry, lidar, draws, frames, seen)
            if mode == "loss":
                terms = dict(self.pts_bbox_head.loss_terms(output, data_samples))
                if self.img_aux_head is not None:
                    num_cams = self.pts_bbox_head.num_cams
                    terms |= self.img_aux_head.loss_terms(feats, geometry, data_samples, num_cams)
                return self.loss_normalizer(terms)
            if mode == "predict":
                return self.pts_bbox_head.predict(output, data_samples)
            return output

    def _seen_points(
        self, feats: Sequence[Tensor], geometry: CameraGeometry
    ) -> list[Tensor] | None:
        """Return where the image network sees surfaces, if the head's queries start there."""
        head = self.pts_bbox_head
        if self.img_aux_head is None or not head.num_seen_queries:
            return None
        seen: list[Tensor] = self.img_aux_head.seen_points(feats[-1], geometry, head.num_cams)
        return seen

    def extract_lidar(self, points: Sequence[Tensor] | None) -> LidarInput:
        """Return the points of every sample and the LiDAR features of the batch."""
        if points is None:
            raise ModelConfigError(
                "The model has a LiDAR branch and the batch no points: use a data set that loads "
                "LiDAR sweeps (use_lidar=True, and LoadLidarSweeps in its pipeline)."
            )
        return LidarInput(points, lidar_map(self, points))

    def extract_feat(self, images: Tensor, data_samples: Sequence[BaseDataElement]) -> list[Tensor]:
        """Return L feature maps ``[B, T*N, C, h, w]`` of images ``[B, T*N, 3, H, W]``."""
        if self.streaming and not self.training:
            return self._extract_streaming(images, data_samples)
        num_cams = self.pts_bbox_head.num_cams
        kept = images.shape[1] if self.stop_prev_grad is None else self.stop_prev_grad * num_cams
        if self.grid_mask is not None:
            draws = None
            if self.training and data_samples:
                draws = SampleDraws.of(data_samples).part("grid_mask")
            images = self.grid_mask(images, draws)
        needs_no_gradient = not (self.training or torch.is_grad_enabled())
        if needs_no_gradient or kept >= images.shape[1]:
            return self._image_network(images)
        current = self._image_network(images[:, :kept])
        previous = self._without_gradient(images[:, kept:])
        return [torch.cat(level, dim=1) for level in zip(current, previous, strict=True)]

    def _image_network(self, images: Tensor) -> list[Tensor]:
        """Map images ``[..., 3, H, W]`` to L feature maps ``[..., C, h, w]``."""
        # Convolutions and sampling both read all channels of a pixel: keep these together.
        images_nhwc = images.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        levels = self.img_neck(self.img_backbone(images_nhwc))
        return [level.unflatten(0, images.shape[:-3]) for level in levels]

    @torch.no_grad()
    def _without_gradient(self, images: Tensor) -> list[Tensor]:
        parts = (self.img_backbone, self.img_neck)
        modes = [part.training for part in parts]
        try:
            for part in parts:
                part.eval()
            return self._image_network(images)
        finally:
            for part, mode in zip(parts, modes, strict=True):
                part.train(mode)

    def _extract_streaming(
        self, images: Tensor, data_samples: Sequence[BaseDataElement]
    ) -> list[Tensor]:
        num_cams = self.pts_bbox_head.num_cams
        frames = images.unflatten(1, (-1, num_cams)).flatten(0, 1)  # [B*T, N, 3, H, W]
        keys = [key for sample in data_samples for key in _frame_keys(sample, num_cams)]

        def compute(positions: list[int]) -> list[FrameFeatures]:
            levels = self._image_network(frames[positions])
            return list(zip(*levels, strict=True))

        features = self.cache.fetch(keys, compute)
        return [
            torch.stack(level).unflatten(0, (len(images), -1)).flatten(1, 2)
            for level in zip(*features, strict=True)
        ]


def _frame_keys(sample: BaseDataElement, num_cams: int) -> list[Hashable]:
    """Return what identifies the images of each frame of a sample."""
    paths = sample.metainfo.get("img_paths")
    ida_mat = sample.metainfo.get("ida_mat")
    if paths is None or ida_mat is None:
        raise ModelConfigError(
            "Streaming needs img_paths and ida_mat in the metainfo of every sample: add them to "
            "the meta keys of the data set, or set model.streaming=False."
        )
    augmentation = np.asarray(ida_mat).tobytes()
    return [(tuple(paths[i : i + num_cams]), augmentation) for i in range(0, len(paths), num_cams)]
