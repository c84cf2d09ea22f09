"""The model as functions of tensors, to be traced for other runtimes.

The functions share the modules and parameters of their detector. They take one sample.

Dimension letters: T frames (current first), N cameras, L pyramid levels, C channels, H, W size of
the given images, h, w size of a feature map, V LiDAR voxels, n LiDAR points, Q queries,
m predicted voxels.
"""

from __future__ import annotations

import copy
import enum
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from models import ops
from models.detectors import OPUS
from models.detectors.lidar_branch import map_of_voxels
from scripts.export.standard_operations import stack_cameras, unstack_cameras


class Layout(enum.Enum):
    """Memory layout of feature maps between the image network and the decoder."""

    STACKED = "stacked"  # [T, C, N * (h + 1), w], see `stack_cameras`
    CHANNELS_LAST = "channels_last"  # [T*N, h, w, C]

    def arranged(self, level: Tensor, num_cams: int) -> Tensor:
        """Bring a map `[T*N, C, h, w]` into the layout."""
        if self is Layout.STACKED:
            return stack_cameras(level, num_cams)
        return level.permute(0, 2, 3, 1).contiguous()


class LidarVoxels(NamedTuple):
    """Inputs of the LiDAR branch.

    Attributes:
        features: `[V, 5]`, mean of the points of a voxel, see `MeanVoxelizer`.
        coords: int64 `[V, 3]` (z, y, x), ascending.
        sweep: `[n, 3]`, only the points of the current sweep, metres of the occ frame.
    """

    features: Tensor
    coords: Tensor
    sweep: Tensor


class Voxels(NamedTuple):
    """The prediction.

    Attributes:
        coords: int64 `[m, 3]` (x, y, z).
        labels: int64 `[m]`.
        scores: `[m]`.
    """

    coords: Tensor
    labels: Tensor
    scores: Tensor


class ImageNetwork(nn.Module):
    """Images of whole frames to feature maps.

    Args:
        detector: The model, in evaluation mode.
        layout: Layout of the maps.
        half: Whether to compute in half precision, with a copy of the weights, and return maps of
            this precision.
    """

    def __init__(self, detector: OPUS, layout: Layout, *, half: bool = False) -> None:
        super().__init__()
        self.preprocessor = detector.data_preprocessor
        self.backbone: nn.Module = detector.img_backbone
        self.neck: nn.Module = detector.img_neck
        if half:
            self.backbone, self.neck = (
                copy.deepcopy(part).half() for part in (self.backbone, self.neck)
            )
        self.half_precision = half
        self.layout = layout
        self.num_cams: int = detector.pts_bbox_head.num_cams

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map uint8 BGR images `[T*N, 3, H, W]` to L maps."""
        batch = dict(inputs=dict(img=[images]), data_samples=[])
        pixels: Tensor = self.preprocessor(batch, False)["inputs"]["img"][0]
        if self.half_precision:
            pixels = pixels.half()
        if self.layout is Layout.CHANNELS_LAST:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        levels = self.neck(self.backbone(pixels))
        return [self.layout.arranged(level, self.num_cams) for level in levels]


class Decoder(nn.Module):
    """Feature maps, cameras and LiDAR to voxels.

    Args:
        detector: The model, in evaluation mode.
        image_hw: H and W.
        layout: Layout of the maps. Stacked ones need `standard_operations` around the call.
    """

    def __init__(self, detector: OPUS, image_hw: tuple[int, int], layout: Layout) -> None:
        super().__init__()
        self.head: Any = detector.pts_bbox_head
        self.lidar: Any = None
        if detector.has_lidar:
            parts = ("pts_middle_encoder", "pts_backbone", "pts_neck", "final_conv")
            self.lidar = nn.ModuleDict({name: getattr(detector, name) for name in parts})
        self.surfaces = detector.img_aux_head if self.head.uses_seen_surfaces else None
        self.network_hw = padded_size(detector, image_hw)
        self.layout = layout

    def forward(
        self, levels: Sequence[Tensor], occ2img: Tensor, lidar: LidarVoxels | None = None
    ) -> Voxels:
        """Predict voxels.

        Args:
            levels: L maps of T frames.
            occ2img: `[T*N, 4, 4]`, metres of the occ frame to pixels of the images.
            lidar: LiDAR inputs, if the model has a LiDAR branch.
        """
        head = self.head
        levels = [level.float() for level in levels]
        if self.layout is Layout.CHANNELS_LAST:
            levels = [level.permute(0, 3, 1, 2).unsqueeze(0) for level in levels]
        bev_feats = None
        if lidar is None:
            start = head.init_points.weight
        else:
            coords = torch.nn.functional.pad(lidar.coords, (1, 0))
            bev_feats = map_of_voxels(_Parts(self.lidar), lidar.features, coords, 1)
            index = ops.farthest_point_sampling(lidar.sweep, head.num_query)
            start = head.normalise(lidar.sweep[index])
        learned = start[None, :, None]
        starts = head.start(learned, None, self._seen_surfaces(levels, occ2img))
        output = head.decode(
            learned, levels, occ2img[None], self.network_hw, bev_feats, None, *starts
        )
        (sample,) = head.predict(output, [BaseDataElement()])
        return Voxels(sample.pred_coords, sample.pred_labels, sample.pred_scores)

    def _seen_surfaces(self, levels: Sequence[Tensor], occ2img: Tensor) -> Any:
        """Return the surfaces that the maps of the current frame show, if the head uses them."""
        if self.surfaces is None:
            return None
        N = self.head.num_cams
        level = levels[self.head.seen_level]
        if self.layout is Layout.STACKED:
            level = unstack_cameras(level[:1], N)
        return self.surfaces.seen_surfaces(level[:, :N], occ2img[None, :N], self.network_hw)


class _Parts:
    """Modules by name, as attributes."""

    def __init__(self, modules: nn.ModuleDict) -> None:
        self.__dict__.update(modules.items())


def padded_size(detector: OPUS, image_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the network's input, in pixels, for images of a size."""
    divisor = detector.data_preprocessor.pad_size_divisor
    height, width = (math.ceil(size / divisor) * divisor for size in image_hw)
    return height, width
