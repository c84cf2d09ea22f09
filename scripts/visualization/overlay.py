"""Camera images with occupied voxels drawn over them from the camera's position."""

from __future__ import annotations

import numpy as np
from PIL import Image

from scripts.visualization.camera import Camera
from scripts.visualization.palette import Theme, class_colours
from scripts.visualization.sample_view import CameraImage, SampleView
from scripts.visualization.voxel_renderer import VoxelRenderer
from scripts.visualization.workers import parallel_map

_OPACITY = 0.62


def overlaid_images(
    view: SampleView, width: int, theme: Theme, palette: str = "field"
) -> tuple[CameraImage, ...]:
    """Return the sample's images with its prediction, or else its ground truth, over them.

    Args:
        view: the sample. Images without calibration are unchanged.
        width: columns of the images; their height follows.
        theme: colours of everything except voxels.
        palette: class colours.
    """
    grid = view.prediction if view.prediction is not None else view.truth
    if grid is None:
        return view.images
    renderer = VoxelRenderer(
        grid,
        view.grid_min,
        view.voxel_size,
        view.empty_label,
        class_colours(view.class_names, palette),
        theme,
        ego2grid=view.ego2grid,
        show_ego=False,
    )

    def draw(image: CameraImage) -> CameraImage:
        if image.ego2img is None:
            return image
        camera = Camera.from_projection(image.ego2img, *image.image.size)
        height = round(width * image.image.height / image.image.width)
        small = image.image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        drawn = renderer.render_over(camera.resized(width, height), np.asarray(small), _OPACITY)
        return CameraImage(image.name, Image.fromarray(drawn), image.ego2img)

    return tuple(parallel_map(draw, view.images))
