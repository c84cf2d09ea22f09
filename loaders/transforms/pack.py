"""Conversion of a sample to inputs and data sample. Legend: F images, X Y Z voxels, O origins."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.registry import TRANSFORMS
from mmengine.structures import BaseDataElement
from torch import Tensor

from loaders.errors import LoaderConfigError
from loaders.sample import OccSample
from loaders.shared_memory import as_tensor
from loaders.transforms.geometry import image_aug_matrix


class OccDataElement(BaseDataElement):
    """MMEngine's data element, with support for page-locked memory."""

    def pin_memory(self) -> OccDataElement:
        """Return a copy with all tensors in page-locked memory; called by torch's data loader."""
        pinned = self.new()
        for name, value in self.items():
            pinned.set_field(value.pin_memory() if isinstance(value, Tensor) else value, name)
        assert isinstance(pinned, OccDataElement)
        return pinned


@TRANSFORMS.register_module()
class PackOccSample:
    """Pack a sample into `dict(inputs=dict(img=...), data_samples=OccDataElement)`.

    `img` is a uint8 tensor [F, 3, H, W], BGR: a view of the [F, H, W, 3] images. It needs no copy
    and keeps the channels-last layout. If LiDAR points are loaded, the inputs hold `points`,
    float32 [n, 5]: x, y, z in metres of the occ frame (the frame of the labels, BEV flips
    included), intensity, time lag in seconds (0 for the key frame, whose points come first).

    The data element holds `ego2img` float32 [F, 4, 4] and `ego2occ` float32 [4, 4]. With points it
    holds `ego2lidar` float32 [4, 4] (ego to the frame of the points, thus equal to `ego2occ`). If
    loaded, it holds `voxel_semantics` uint8, `mask_camera`, `mask_lidar` and `mask_valid` bool
    [X, Y, Z]. All other values are its metainfo. In training this includes `seed` for the model's
    random draws, which is drawn last from the sample's generator.
    """

    def __call__(self, sample: OccSample) -> dict[str, Any]:
        """Return the packed sample."""
        if sample.images is None or sample.image_aug is None:
            raise LoaderConfigError(
                "PackOccSample needs LoadMultiViewImages before it in the pipeline"
            )
        metainfo: dict[str, Any] = {
            "sample_token": sample.sample_token,
            "scene_name": sample.scene_name,
            "cameras": sample.cameras,
            "scene_token": sample.scene_token,
            "frame_index": sample.frame_index,
            "sequence_id": sample.sequence_id,
            "timestamp": sample.timestamp,
            "ego2global": sample.ego2global,
            "sample_idx": sample.sample_idx,
            "img_paths": sample.img_paths,
            "img_timestamps": sample.img_timestamps,
            "ida_mat": image_aug_matrix(sample.image_aug),
            "class_names": sample.class_names,
            "pc_range": sample.pc_range,
            "voxel_size": sample.voxel_size,
            "lidar2ego": sample.lidar2ego,
        }
        if sample.rng is not None:
            metainfo["seed"] = int(sample.rng.integers(2**63))
        if sample.replaces is not None:
            metainfo["replaces"] = sample.replaces
        if sample.is_unlabelled:
            metainfo["is_unlabelled"] = True
        if sample.ray_origins is not None:
            metainfo["ray_origins"] = sample.ray_origins
        data = {
            "ego2img": torch.from_numpy(sample.ego2img).float(),
            "ego2occ": torch.from_numpy(sample.ego2occ).float(),
        }
        for name in ("voxel_semantics", "mask_camera", "mask_lidar", "mask_valid"):
            grid = getattr(sample, name)
            if grid is not None:
                data[name] = as_tensor(grid)
        inputs = {"img": as_tensor(sample.images).permute(0, 3, 1, 2)}
        if sample.points is not None:
            inputs["points"] = as_tensor(sample.points)
            data["ego2lidar"] = data["ego2occ"].clone()
        return {"inputs": inputs, "data_samples": OccDataElement(metainfo=metainfo, **data)}
