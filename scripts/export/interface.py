"""Names, shapes and meanings of the inputs and outputs of exported files.

Dimension letters: T frames (current first), N cameras, L pyramid levels, C channels, H, W size of
the images, h, w size of a feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scripts.export.graphs import Layout, LidarVoxels
from scripts.export.source import Frame, Source


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        name: Its name in the file.
        shape: Numbers, and names of sizes that vary.
        meaning: Contents, unit and frame.
    """

    name: str
    shape: tuple[int | str, ...]
    meaning: str


OUTPUTS = (
    Port("coords", ("voxels", 3), "int64: index (x, y, z) of every occupied voxel"),
    Port("labels", ("voxels",), "int64: class of the voxel, an index of class_names"),
    Port("scores", ("voxels",), "float32: score of that class, above score_threshold"),
)


def images_port(source: Source, frames: int) -> Port:
    """Return the camera images of a number of frames."""
    shape = (frames * source.head.num_cams, 3, *source.image_hw)
    return Port(
        "images",
        shape,
        "uint8: images, BGR, resized and cropped to image_hw, not normalised; the cameras in their "
        "order, of the current frame first, then of older ones",
    )


_LAYOUTS = {
    Layout.STACKED: "of every frame, the current one first; a frame's cameras one below the other, "
    "each followed by a row of zeros",
    Layout.CHANNELS_LAST: "of every image, in their order, channels last",
}


def feature_ports(levels: Sequence[Tensor], frames: int, layout: Layout) -> list[Port]:
    """Return the feature maps of a number of frames.

    Args:
        levels: L maps of one frame.
        frames: How many frames.
        layout: Layout of the maps.
    """
    kind = str(levels[0].dtype).removeprefix("torch.")
    return [
        Port(
            f"feats{index}",
            (frames * level.shape[0], *level.shape[1:]),
            f"{kind}: feature map {index} {_LAYOUTS[layout]}",
        )
        for index, level in enumerate(levels)
    ]


def geometry_ports(source: Source) -> list[Port]:
    """Return the cameras, and the LiDAR of a model with a LiDAR branch."""
    head = source.head
    ports = [
        Port(
            "occ2img",
            (head.num_frames * head.num_cams, 4, 4),
            "float32: projection of every image, in their order: metres of the grid's frame to "
            "pixels (u*w, v*w, w, 1) of the given image",
        )
    ]
    if not source.detector.has_lidar:
        return ports
    return [
        *ports,
        Port(
            "lidar_features",
            ("lidar_voxels", 5),
            "float32: mean x, y, z (metres, grid's frame), intensity and time lag (seconds) of the "
            "points of every LiDAR voxel",
        ),
        Port(
            "lidar_coords",
            ("lidar_voxels", 3),
            "int64: index (z, y, x) of every LiDAR voxel, ascending",
        ),
        Port(
            "lidar_sweep",
            ("lidar_points", 3),
            "float32: x, y, z (metres, grid's frame) of the points of the current sweep",
        ),
    ]


def geometry_tensors(frame: Frame) -> list[Tensor]:
    """Return the tensors of `geometry_ports`."""
    return [frame.occ2img, *(frame.lidar or ())]


def lidar_facts(source: Source) -> dict[str, Any]:
    """Return the settings of the voxeliser; empty if the model has no LiDAR branch."""
    if not source.detector.has_lidar:
        return {}
    layer = source.detector.pts_voxel_layer
    return dict(
        lidar=dict(
            pc_range=[round(float(edge), 6) for edge in (*layer.low, *layer.high)],
            voxel_size=[round(float(edge), 6) for edge in layer.voxel_size],
            grid_shape=list(layer.grid_shape),
            max_points=layer.max_points,
            max_voxels=layer.max_voxels[1],
        )
    )


def lidar_of(tensors: Sequence[Tensor]) -> LidarVoxels | None:
    """Return the LiDAR input from the tensors after `occ2img`."""
    return LidarVoxels(*tensors) if tensors else None


def dynamic_shapes(ports: Sequence[Port]) -> list[dict[int, Any]]:
    """Return the dynamic axes of every port, in the form of `torch.export`."""
    names = {size for port in ports for size in port.shape if isinstance(size, str)}
    dims = {name: torch.export.Dim(name, min=2) for name in sorted(names)}
    return [
        {axis: dims[size] for axis, size in enumerate(port.shape) if isinstance(size, str)}
        for port in ports
    ]
