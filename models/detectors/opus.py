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

from models.data_preprocessor import FrameSelection, OPUSDataPreprocessor
from models.errors import MissingWeightsError, ModelConfigError, does_not_exist
from models.heads import (
    CameraGeometry,
    HeadOutput,
    LidarInput,
    OccupancyHead,
    SeenSurfaces,
    SequenceFrame,
)
from models.layers import convert_layouts_together
from models.layers.channels import cat_channels_last
from models.layers.convolutions import use_fast_convolutions
from models.losses import LossNormalizer
from models.randomness import SampleDraws

from .evaluation_network import EvaluationNetwork, check_eval_dtype
from .feature_cache import FeatureCache
from .lidar_branch import build_lidar_branch, lidar_map
from .norm_folding import rest_norms, wake_norms


@MODELS.register_module()
class OPUS(BaseModel):
    """Occupancy prediction from multi-camera images and LiDAR with a sparse set of points.

    Wang et al., "OPUS: Occupancy Prediction Using a Sparse Set", arXiv 2409.09350. Parts are named
    as in published checkpoints. Mixed precision (MMEngine's autocast contexts) applies to the dense
    image and LiDAR networks only. Sparse convolutions, the head and its losses keep the precision
    of their parameters.

    Args:
        img_backbone: Configuration of the image backbone.
        img_neck: Configuration of the feature pyramid.
        pts_bbox_head: Configuration of the head, with ``use_lidar`` if there is a LiDAR branch.
        pts_voxel_layer: Configuration of the LiDAR voxeliser; it has the range of the head.
        pts_middle_encoder: Configuration of mmdet3d's sparse encoder of LiDAR voxels.
        pts_backbone: Configuration of the LiDAR backbone.
        pts_neck: Configuration of the LiDAR neck. Set all four or none.
        img_aux_head: Configuration of a ``FirstHitHead`` that supervises the image network in
            training and predicts surfaces for heads that use them; None for none, as published.
        grid_mask: Configuration of an augmentation of the network's input; None for none.
        loss_normalizer: Divisor of the losses with several processes, see ``LossNormalizer``:
            ``'batch'``, or ``'rank'`` as for the published models.
        stop_prev_grad: Number of frames, starting with the current one, whose features have a
            gradient. The others run without gradient and in eval mode. None: all frames.
        streaming: Whether evaluation caches the features of frames, so that only new frames of a
            sample are computed. Samples need ``img_paths`` (T*N, frame-major) and ``ida_mat`` in
            their metainfo, which together identify an image.
        cached_frames: Size of the cache; with twice the frames of a sample they are read in place.
        eval_dtype: Precision of the image network in evaluation: ``'float32'``, ``'bfloat16'`` (on
            devices that multiply it natively), ``'float16'`` (on GPUs), or ``'auto'``, which is
            bfloat16 if the device supports it and float32 otherwise. The feature maps have the same
            precision, sums over them are in float32. None keeps the precision of the parameters.
        cuda_graphs: Whether evaluation on a GPU captures the image network as CUDA graphs and
            replays them. Its maps are then valid until its next call.
        sparse_backend: Implementation of the LiDAR branch's sparse convolutions on CUDA: ``'own'``
            or ``'spconv'``.
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
        eval_dtype: str | None = None,
        cuda_graphs: bool = False,
        sparse_backend: str = "own",
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if stop_prev_grad is not None and stop_prev_grad < 1:
            raise ModelConfigError(
                f"stop_prev_grad must be None or at least 1, got {stop_prev_grad}."
            )
        self.eval_dtype = eval_dtype
        self.cuda_graphs = cuda_graphs
        check_eval_dtype(eval_dtype)
        self.img_backbone = MODELS.build(img_backbone)
        self.img_neck = MODELS.build(img_neck)
        self.pts_bbox_head: OccupancyHead = MODELS.build(pts_bbox_head)
        lidar_configs = dict(
            pts_voxel_layer=pts_voxel_layer,
            pts_middle_encoder=pts_middle_encoder,
            pts_backbone=pts_backbone,
            pts_neck=pts_neck,
        )
        self._add_lidar_branch(lidar_configs, pts_bbox_head["pc_range"], sparse_backend)
        for name in ("img_backbone", "img_neck", "pts_backbone", "pts_neck", "final_conv"):
            if hasattr(self, name):
                use_fast_convolutions(getattr(self, name))
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
        self.copies_losses = False
        self._evaluation: EvaluationNetwork | None = None
        self._compile_options: dict[str, Any] | None = None
        convert_layouts_together(self)

    def _add_lidar_branch(
        self, configs: Mapping[str, dict | None], pc_range: Sequence[float], sparse_backend: str
    ) -> None:
        head = self.pts_bbox_head
        parts = build_lidar_branch(configs, pc_range, head.embed_dims, sparse_backend)
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
        """Initialise the weights as configured.

        Raises:
            MissingWeightsError: If a pretrained checkpoint of the image network does not exist.
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
        """Set the mode, and drop cached features and the evaluation network.

        In training, batch norms of the image network that stay in eval mode are folded into the
        convolutions before them.
        """
        self._forget()
        image_network = (self.img_backbone, self.img_neck)
        wake_norms(image_network)
        super().train(mode)
        if mode:
            rest_norms(image_network)
        return self

    def parse_losses(
        self, losses: dict[str, Tensor | list[Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the losses, and each for the log.

        If ``copies_losses`` is set, the losses for the log are copied to the host asynchronously.
        They may be read after the optimiser wrapper, which sets it, has synchronised.
        """
        total, log = super().parse_losses(losses)
        if not self.copies_losses or total.device.type == "cpu":
            return total, log
        values = torch.stack([value.detach().double() for value in log.values()])
        return total, dict(zip(log, values.to("cpu", non_blocking=True), strict=True))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Drop results of other weights, then load."""
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> OPUS:
        """Drop results on another device or in another precision, then convert."""
        self._forget()
        super()._apply(*args, **kwargs)
        return self

    def _forget(self) -> None:
        """Drop cached features and the evaluation network."""
        self.cache.clear()
        self._evaluation = None

    def compile_image_network(self, **options: Any) -> None:
        """Compile backbone and neck, and their copies in evaluation.

        Args:
            **options: Arguments of ``torch.compile``.
        """
        self._compile_options = options
        self._evaluation = None
        for part in (self.img_backbone, self.img_neck):
            part.compile(**options)

    def compile_decoder(self, **options: Any) -> None:
        """Compile the layers of the decoder.

        Args:
            **options: Arguments of ``torch.compile``.
        """
        decoder: Any = self.pts_bbox_head.transformer["decoder"]
        decoder.compile_layers(**options)

    def val_step(self, data: dict) -> list[BaseDataElement]:
        """Predict a batch from the data loader; see MMEngine."""
        return self.test_step(data)

    def test_step(self, data: dict) -> list[BaseDataElement]:
        """Predict a batch from the data loader; see MMEngine.

        Streaming uploads, normalises and pads only frames that are not in the cache.
        """
        arguments = {}
        if self._streams and isinstance(self.data_preprocessor, OPUSDataPreprocessor):
            num_cams = self.pts_bbox_head.num_cams
            keys = _keys_of(data["data_samples"], num_cams)
            missing = self.cache.missing([key for sample in keys for key in sample])
            arguments["selection"] = FrameSelection(missing, num_cams)
        data = self.data_preprocessor(data, False, **arguments)
        return self._run_forward(data, mode="predict")

    def forward(
        self, inputs: dict[str, Any], data_samples: list[BaseDataElement], mode: str = "tensor"
    ) -> dict[str, Tensor] | list[BaseDataElement] | HeadOutput:
        """Run the model on the data preprocessor's output.

        Args:
            inputs: ``img``, float ``[B, T*N, 3, H, W]``, or with ``new_frames`` (see
                ``extract_feat``) only those frames, ``[n, N, 3, H, W]``; with a LiDAR branch also
                ``points``, a float tensor ``[n, 5]`` per sample: x, y, z in metres of the occ
                frame (BEV augmentation included), intensity, and the time lag behind the key frame
                in seconds, exactly 0 for its own points, which come first.
            data_samples: Samples with ``ego2img`` ``[T*N, 4, 4]`` and ``ego2occ`` ``[4, 4]``, and
                in the mode ``'loss'`` the labels that the head needs.
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
        frames = None
        if self.pts_bbox_head.memory is not None:  # copies to the host, before a layer runs
            frames = [SequenceFrame.of(sample) for sample in data_samples]
        grids = None
        if mode == "loss":  # first, so that the counts arrive before they are needed
            grids = self.pts_bbox_head.label_grids(data_samples, images.device)
        feats = self.extract_feat(images, data_samples, inputs.get("new_frames"))
        lidar = self.extract_lidar(inputs.get("points")) if self.has_lidar else None
        with torch.autocast(images.device.type, enabled=False):
            draws = SampleDraws.of(data_samples).part("decoder") if self.training else None
            seen = self._seen_surfaces(feats, geometry)
            output = self.pts_bbox_head(feats, geometry, lidar, draws, frames, seen)
            if mode == "loss":
                terms = dict(self.pts_bbox_head.loss_terms(output, data_samples, grids))
                if self.img_aux_head is not None:
                    num_cams = self.pts_bbox_head.num_cams
                    terms |= self.img_aux_head.loss_terms(feats, geometry, data_samples, num_cams)
                return self.loss_normalizer(terms)
            if mode == "predict":
                return self.pts_bbox_head.predict(output, data_samples)
            return output

    def _seen_surfaces(
        self, feats: Sequence[Tensor], geometry: CameraGeometry
    ) -> list[SeenSurfaces] | None:
        """Return the predicted surfaces if the head uses them."""
        head = self.pts_bbox_head
        if self.img_aux_head is None or not head.uses_seen_surfaces:
            return None
        seen: list[SeenSurfaces] = self.img_aux_head.seen_surfaces(
            feats[head.seen_level][:, : head.num_cams],
            geometry.occ2img()[:, : head.num_cams],
            geometry.img_hw,
        )
        return seen

    def extract_lidar(self, points: Sequence[Tensor] | None) -> LidarInput:
        """Return the points of every sample and the LiDAR features of the batch."""
        if points is None:
            raise ModelConfigError(
                "The model has a LiDAR branch and the batch no points: use a data set that loads "
                "LiDAR sweeps (use_lidar=True, and LoadLidarSweeps in its pipeline)."
            )
        num_current = LidarInput.count_current(points)  # before the voxeliser synchronises
        return LidarInput(points, lidar_map(self, points), num_current)

    def extract_feat(
        self,
        images: Tensor,
        data_samples: Sequence[BaseDataElement],
        new_frames: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Return L feature maps ``[B, T*N, C, h, w]``, channels-last in memory.

        In streaming they may be views of the cache, which are valid until the next call.

        Args:
            images: ``[B, T*N, 3, H, W]``; with ``new_frames`` ``[n, N, 3, H, W]``.
            data_samples: Samples of the batch.
            new_frames: In streaming, positions among the B*T frames of the batch that are not
                cached and that ``images`` contains. None: it contains all frames.
        """
        if self._streams:
            return self._extract_streaming(images, data_samples, new_frames)
        num_cams = self.pts_bbox_head.num_cams
        kept = images.shape[1] if self.stop_prev_grad is None else self.stop_prev_grad * num_cams
        if self.grid_mask is not None:
            draws = None
            if self.training and data_samples:
                draws = SampleDraws.of(data_samples).part("grid_mask")
            images = self.grid_mask(images, draws)
        if not self._learns or kept >= images.shape[1]:
            return self.image_features(images)
        current = self.image_features(images[:, :kept])
        previous = self._without_gradient(images[:, kept:])
        return [cat_channels_last(level, dim=1) for level in zip(current, previous, strict=True)]

    @property
    def _streams(self) -> bool:
        return self.streaming and not self.training

    @property
    def _learns(self) -> bool:
        return self.training or torch.is_grad_enabled()

    def image_features(self, images: Tensor) -> list[Tensor]:
        """Map images ``[..., 3, H, W]`` to L feature maps ``[..., C, h, w]``, channels-last."""
        # convolutions and sampling both read all channels of a pixel
        images_nhwc = images.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        if self._learns:
            levels = self.img_neck(self.img_backbone(images_nhwc))
        else:
            levels = self._evaluation_network()(images_nhwc)
        return [
            level.contiguous(memory_format=torch.channels_last).unflatten(0, images.shape[:-3])
            for level in levels
        ]

    def _evaluation_network(self) -> EvaluationNetwork:
        """Return the evaluation copy of the image network, with the current weights."""
        if self._evaluation is None or not self._evaluation.is_current:
            self._forget()
            self._evaluation = EvaluationNetwork(
                [self.img_backbone, self.img_neck],
                self.eval_dtype,
                self._compile_options,
                self.cuda_graphs,
            )
        return self._evaluation

    @torch.no_grad()
    def _without_gradient(self, images: Tensor) -> list[Tensor]:
        parts = (self.img_backbone, self.img_neck)
        modes = [part.training for part in parts]
        try:
            for part in parts:
                part.eval()
            return self.image_features(images)
        finally:
            for part, mode in zip(parts, modes, strict=True):
                part.train(mode)

    @torch.no_grad()
    def _extract_streaming(
        self,
        images: Tensor,
        data_samples: Sequence[BaseDataElement],
        new_frames: Sequence[int] | None,
    ) -> list[Tensor]:
        num_cams = self.pts_bbox_head.num_cams
        keys = _keys_of(data_samples, num_cams)

        def compute(positions: list[int]) -> list[Tensor]:
            if new_frames is None:
                frames = images.unflatten(1, (-1, num_cams)).flatten(0, 1)  # [B*T, N, 3, H, W]
                return self.image_features(frames[positions])
            if positions != list(new_frames):
                raise RuntimeError(f"frames {positions} are not cached, got {list(new_frames)}")
            return self.image_features(images)

        return [level.flatten(1, 2) for level in self.cache.fetch(keys, compute)]


def _keys_of(samples: Sequence[BaseDataElement], num_cams: int) -> list[list[Hashable]]:
    """Return the cache keys of the frames, T per sample."""
    return [_frame_keys(sample, num_cams) for sample in samples]


def _frame_keys(sample: BaseDataElement, num_cams: int) -> list[Hashable]:
    """Return the cache keys of the frames of a sample."""
    paths = sample.metainfo.get("img_paths")
    ida_mat = sample.metainfo.get("ida_mat")
    if paths is None or ida_mat is None:
        raise ModelConfigError(
            "Streaming needs img_paths and ida_mat in the metainfo of every sample: add them to "
            "the meta keys of the data set, or set model.streaming=False."
        )
    augmentation = np.asarray(ida_mat).tobytes()
    return [(tuple(paths[i : i + num_cams]), augmentation) for i in range(0, len(paths), num_cams)]
