"""Network inputs of samples, with labels and LiDAR points projected into the images.

A drawn sample has passed the whole pipeline: random crop, flips, colours and the matching matrices.
If a matrix and an image disagree, points and image do not match in the picture.

Dimension letters: F images (frames x cameras), H, W image size, X, Y, Z voxels, n points.
Frames: *ego* (x forward, y left, z up, metres), *occ* (the voxel grid's frame, with BEV flips).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scripts.runtime.building import named_config_keys
from scripts.runtime.errors import ConfigError
from scripts.visualization.palette import RGB, THEMES, class_colours, pretty_name
from scripts.visualization.sample_view import short_name
from scripts.visualization.text import colour_key_rows, draw_colour_key, draw_text, text_width

NEAREST_M = 0.5  # points nearer to the camera's plane are not drawn
_CELL_WIDTH = 480  # pixels; images are resized to it
_GAP, _TEXT = 10, 15
_DIM = 0.45  # brightness of images behind points
_LIDAR_FAR_M = 50.0  # end of the colour scale
_ARROW_M = 8.0  # the axes of the ego frame in the bird's-eye view


@dataclass(frozen=True)
class AugmentedSample:
    """One sample after the pipeline and the data preprocessor.

    Attributes:
        index: position in the data set.
        token: nuScenes token of the key frame.
        scene_name: e.g. `scene-0103`.
        images: uint8 RGB [F, H, W, 3], the network's input without normalisation.
        cameras: names of the cameras, in the order of each frame's images.
        ego2img: [F, 4, 4] metres of the ego frame to pixels (u*w, v*w, w, 1) of `images`.
        ego2occ: [4, 4] from the ego frame to the grid's frame.
        lidar2ego: [4, 4], mounting of the LiDAR.
        ida_mat: [4, 4] raw pixels to pixels of `images`.
        pc_range: (x0, y0, z0, x1, y1, z1) of the grid in metres.
        voxel_size: edge lengths of a voxel in metres.
        class_names: names of the semantic classes; the label after the last is free.
        labels: uint8 [X, Y, Z], or None.
        seen: bool [X, Y, Z], voxels that a camera sees, or None.
        points: float32 [n, 3] LiDAR points in the grid's frame, or None.
    """

    index: int
    token: str
    scene_name: str
    images: NDArray[np.uint8]
    cameras: tuple[str, ...]
    ego2img: NDArray[np.float64]
    ego2occ: NDArray[np.float64]
    lidar2ego: NDArray[np.float64]
    ida_mat: NDArray[np.float64]
    pc_range: tuple[float, ...]
    voxel_size: tuple[float, ...]
    class_names: tuple[str, ...]
    labels: NDArray[np.uint8] | None = None
    seen: NDArray[np.bool_] | None = None
    points: NDArray[np.float32] | None = None

    @property
    def file_stem(self) -> str:
        """Name of this sample's file: sortable, unique, with scene and token."""
        return f"{self.index:05d}_{self.scene_name}_{self.token[:8]}"

    def occupied(self) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """Return the centres [n, 3] in the grid's frame and labels [n] of the occupied voxels."""
        if self.labels is None:
            return np.zeros((0, 3)), np.zeros(0, np.uint8)
        filled = self.labels != len(self.class_names)
        if self.seen is not None:
            filled &= self.seen
        index = np.argwhere(filled)
        low, size = np.asarray(self.pc_range[:3]), np.asarray(self.voxel_size)
        return low + (index + 0.5) * size, self.labels[tuple(index.T)]

    def pixels(self, points: NDArray[np.floating], image: int) -> NDArray[np.float64]:
        """Project points of the grid's frame into an image.

        Args:
            points: [n, 3] metres.
            image: index of the image.

        Returns:
            [n, 3]: column and row in pixels, depth in metres (0 or less: behind the camera).
        """
        occ2img = self.ego2img[image] @ np.linalg.inv(self.ego2occ)
        moved = points @ occ2img[:3, :3].T + occ2img[:3, 3]
        depth = np.where(np.abs(moved[:, 2]) < 1e-9, 1e-9, moved[:, 2])
        return np.column_stack([moved[:, :2] / depth[:, None], moved[:, 2]])


class AugmentedSource:
    """A split of a config, with its pipeline and data preprocessor.

    Args:
        cfg: the merged config.
        split: `train` or `val`. Colours are distorted only in `train`.
        epoch: the epoch whose random values are drawn.

    Raises:
        ConfigError: the config has no such split.
    """

    def __init__(self, cfg: Config, split: str = "train", epoch: int = 0) -> None:
        loader = cfg.get(f"{split}_dataloader")
        if loader is None:
            raise ConfigError(f"the config has no {split}_dataloader: choose another --split")
        init_default_scope(cfg.get("default_scope", "mmengine"))
        # Data sets seed their randomness from torch's seed, which a run sets from the config.
        torch.manual_seed((cfg.get("randomness") or {}).get("seed") or 0)
        preprocessor = (cfg.get("model") or {}).get("data_preprocessor")
        with named_config_keys(cfg):
            self._dataset = DATASETS.build(loader["dataset"])
            self._preprocessor = None if preprocessor is None else MODELS.build(preprocessor)
        for dataset in _datasets(self._dataset):
            if hasattr(dataset, "set_epoch"):
                dataset.set_epoch(epoch)
        self._training = split == "train"
        names = (getattr(dataset, "cameras", ()) for dataset in _datasets(self._dataset))
        self._cameras: tuple[str, ...] = next((tuple(name) for name in names if name), ())

    def __len__(self) -> int:
        """Return the number of samples of the split."""
        return len(self._dataset)

    def __getitem__(self, index: int) -> AugmentedSample:
        """Load and augment one sample.

        Raises:
            ConfigError: the pipeline does not end in `PackOccSample`.
        """
        item = self._dataset[index]
        try:
            element = item["data_samples"]
            ego2img, ego2occ, meta = element.ego2img, element.ego2occ, element.metainfo
            raw = item["inputs"]["img"]
        except (TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                "the pipeline does not return packed samples with images: let it end in "
                "PackOccSample"
            ) from error
        points = item["inputs"].get("points")
        return AugmentedSample(
            index=index,
            token=str(meta["sample_token"]),
            scene_name=str(meta["scene_name"]),
            images=self._network_input(item, raw),
            cameras=self._cameras or tuple(meta["cameras"]),
            ego2img=_array(ego2img),
            ego2occ=_array(ego2occ),
            lidar2ego=_array(meta["lidar2ego"]),
            ida_mat=_array(meta["ida_mat"]),
            pc_range=tuple(meta["pc_range"]),
            voxel_size=tuple(meta["voxel_size"]),
            class_names=tuple(meta["class_names"]),
            labels=_optional(element, "voxel_semantics"),
            seen=_optional(element, "mask_camera"),
            points=None if points is None else np.asarray(points[:, :3], dtype=np.float32),
        )

    def _network_input(self, item: Mapping[str, Any], raw: torch.Tensor) -> NDArray[np.uint8]:
        """Return the images that the network receives, as RGB [F, H, W, 3]."""
        if self._preprocessor is None:
            images, is_bgr = raw.float(), True
        else:
            batch = self._preprocessor(pseudo_collate([item]), self._training)
            images = batch["inputs"]["img"][0].float()
            if hasattr(self._preprocessor, "std"):
                images = images * self._preprocessor.std + self._preprocessor.mean
            is_bgr = not getattr(self._preprocessor, "bgr_to_rgb", False)
        values = images.clamp(0, 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        height, width = raw.shape[-2:]
        values = values[:, :height, :width]  # without padding
        return np.ascontiguousarray(values[..., ::-1] if is_bgr else values)


def _datasets(dataset: Any) -> Iterator[Any]:
    """Yield a data set and the data sets inside it."""
    yield dataset
    inner = getattr(dataset, "dataset", None)
    for other in [*([inner] if inner is not None else []), *getattr(dataset, "datasets", ())]:
        yield from _datasets(other)


def _array(value: Any) -> NDArray[np.float64]:
    return np.asarray(value, dtype=np.float64)


def _optional(element: Any, name: str) -> Any:
    value = element.get(name)
    return None if value is None else np.asarray(value)


def describe_augmentation(sample: AugmentedSample) -> str:
    """Describe the random values of a sample, computed from its matrices.

    Returns:
        Resize ratio, corner of the crop in pixels of the resized image, flip and rotation of the
        images, flips of the bird's-eye view.
    """
    linear = sample.ida_mat[:2, :2]
    ratio = math.sqrt(abs(np.linalg.det(linear)))
    is_flipped = np.linalg.det(linear) < 0
    turn = linear @ np.diag([-1.0 if is_flipped else 1.0, 1.0]) / ratio
    angle = math.degrees(math.atan2(turn[0, 1], turn[0, 0]))
    size = np.array(sample.images.shape[2:0:-1])
    # Undo the rotation about the centre, then the mirroring: the rest is minus the corner.
    shift = turn.T @ (sample.ida_mat[:2, 2] - size / 2) + size / 2
    left = shift[0] - size[0] if is_flipped else -shift[0]
    words = [f"resized × {ratio:.3f}", f"crop from ({round(left)}, {round(-shift[1])})"]
    words.append("images flipped" if is_flipped else "images not flipped")
    if abs(angle) > 0.01:
        words.append(f"rotated by {angle:.1f}°")
    axes = flipped_axes(sample)
    words.append(f"BEV flipped in {' and '.join(axes)}" if axes else "BEV not flipped")
    return ", ".join(words)


def flipped_axes(sample: AugmentedSample) -> list[str]:
    """Return the axes of the bird's-eye view that are reversed, out of `x` and `y`."""
    # The grid is in the ego or in the LiDAR frame; without flips one of these is the identity.
    candidates = (sample.ego2occ, sample.ego2occ @ sample.lidar2ego)
    flip = min(candidates, key=lambda m: float(np.abs(np.abs(m[:3, :3]) - np.eye(3)).max()))
    return [axis for axis, value in zip("xy", np.diag(flip), strict=False) if value < 0]


def draw_points(
    image: NDArray[np.uint8],
    pixels: NDArray[np.float64],
    colours: NDArray[np.uint8],
    radii: NDArray[np.float64],
) -> None:
    """Draw discs into an image, near ones over far ones.

    Args:
        image: uint8 [H, W, 3], changed in place.
        pixels: [n, 3] column, row, depth.
        colours: uint8 [n, 3].
        radii: [n] pixels.
    """
    height, width = image.shape[:2]
    column, row, depth = pixels.T
    inside = (depth > NEAREST_M) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    visible = np.flatnonzero(inside)
    for i in visible[np.argsort(-depth[visible])]:
        centre = (int(column[i]), int(row[i]))
        colour = tuple(int(value) for value in colours[i])
        cv2.circle(image, centre, max(1, round(radii[i])), colour, cv2.FILLED, cv2.LINE_AA)


def compose(sample: AugmentedSample, all_frames: bool = False) -> Image.Image:
    """Return the picture of a sample: images, projected voxels and points, and the top view.

    Args:
        sample: the sample.
        all_frames: whether to draw the history images too.
    """
    theme = THEMES["light"]
    count = len(sample.images) if all_frames else len(sample.cameras)
    columns = ["input"]
    columns += ["voxels"] if sample.labels is not None else []
    columns += ["lidar"] if sample.points is not None else []
    scale = _CELL_WIDTH / sample.images.shape[2]
    cell = (_CELL_WIDTH, round(sample.images.shape[1] * scale))
    rows = [[_cell(sample, i, kind, cell) for kind in columns] for i in range(count)]
    bev = _bird_views(sample)
    head = 4 * _TEXT
    right = _GAP + len(columns) * (cell[0] + _GAP)
    names = [pretty_name(name) for name in sample.class_names]
    width = right + max((view.width for view in bev), default=-_GAP) + _GAP
    key_rows = colour_key_rows(names, width - 2 * _GAP, _TEXT - 2)
    body = max(count * (cell[1] + _GAP), sum(view.height + _GAP for view in bev))
    foot = key_rows * (_TEXT + 8) + _GAP
    canvas = Image.new("RGB", (width, head + _TEXT + body + foot), theme.page)
    title = f"{sample.scene_name}  ·  sample {sample.index}  ·  {sample.token}"
    draw_text(canvas, (_GAP, _TEXT), title, _TEXT + 1, theme.text, bold=True)
    draw_text(canvas, (_GAP, _TEXT * 5 // 2), describe_augmentation(sample), _TEXT, theme.text)
    top = head + _TEXT
    for c, kind in enumerate(columns):
        left = _GAP + c * (cell[0] + _GAP)
        heading = _HEADINGS[kind]
        if kind == "voxels" and sample.seen is not None:
            heading += " that a camera sees"
        draw_text(canvas, (left, top - _TEXT + 2), heading, _TEXT - 2, theme.text)
        for r, row in enumerate(rows):
            canvas.paste(row[c], (left, top + r * (cell[1] + _GAP)))
    for view in bev:
        canvas.paste(view, (right, top))
        top += view.height + _GAP
    colours = _colours(sample.class_names)
    entries = [(name, _rgb(colour)) for name, colour in zip(names, colours, strict=True)]
    place = (_GAP, canvas.height - foot, width - 2 * _GAP)
    draw_colour_key(canvas, *place, entries, _TEXT - 2, _TEXT + 8, theme.text, theme.rule)
    return canvas


_HEADINGS = {
    "input": "input of the network",
    "voxels": "centres of occupied voxels",
    "lidar": f"LiDAR points, by distance up to {_LIDAR_FAR_M:.0f} m",
}


def _colours(class_names: Sequence[str]) -> NDArray[np.uint8]:
    """Return the colours [C, 3] of the classes; evenly spread hues if the palette lacks one."""
    try:
        return class_colours(class_names)
    except ConfigError:  # custom data sets may have no colours yet
        hues = np.linspace(0, 180, len(class_names), endpoint=False)
        hsv = np.column_stack([hues, np.full((len(hues), 2), 220)]).astype(np.uint8)
        colours: NDArray[np.uint8] = cv2.cvtColor(hsv[:, None], cv2.COLOR_HSV2RGB)[:, 0]
        return colours


def _rgb(colour: Sequence[Any]) -> RGB:
    red, green, blue = (int(value) for value in colour)
    return red, green, blue


def _cell(sample: AugmentedSample, i: int, kind: str, size: tuple[int, int]) -> Image.Image:
    """Return one image, unchanged or with points over it."""
    picture = Image.fromarray(sample.images[i]).resize(size, Image.Resampling.BICUBIC)
    scale = size[0] / sample.images.shape[2]
    if kind != "input":
        values = (np.asarray(picture) * _DIM).astype(np.uint8)
        if kind == "voxels":
            centres, labels = sample.occupied()
            colours = _colours(sample.class_names)[labels]
        else:
            assert sample.points is not None
            centres = sample.points.astype(np.float64)
            colours = _distance_colours(centres)
        pixels = sample.pixels(centres, i) * (scale, scale, 1.0)
        focal = np.linalg.norm(sample.ego2img[i, 0, :3]) * scale
        edge = min(sample.voxel_size) * 0.2 if kind == "voxels" else 0.02
        radii = np.clip(edge * focal / np.maximum(pixels[:, 2], NEAREST_M), 1.0, 6.0)
        draw_points(values, pixels, colours, radii)
        picture = Image.fromarray(values)
    frame, camera = divmod(i, len(sample.cameras))
    name = short_name(sample.cameras[camera])
    label = name if not frame else f"{name}, frame {frame} of the history"
    _draw_label(picture, label)
    return picture


def _draw_label(picture: Image.Image, text: str) -> None:
    """Write a line with a background into the upper left corner."""
    size = _TEXT - 2
    box = (0, 0, text_width(text, size, bold=True) + 8, size + 7)
    ImageDraw.Draw(picture).rectangle(box, fill=(255, 255, 255))
    draw_text(picture, (4, size // 2 + 4), text, size, (0, 0, 0), bold=True)


def _distance_colours(points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the colours [n, 3] by horizontal distance from the grid's origin, near is red."""
    near = 1 - np.clip(np.linalg.norm(points[:, :2], axis=1) / _LIDAR_FAR_M, 0, 1)
    levels = (near * 255).astype(np.uint8)[:, None]
    mapped: NDArray[np.uint8] = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)[:, 0, ::-1]
    return mapped


def _bird_views(sample: AugmentedSample) -> list[Image.Image]:
    """Return the top views of labels and points, x up and y left."""
    views = []
    if sample.labels is not None:
        views.append(_label_map(sample, show_points=sample.points is not None))
    elif sample.points is not None:
        views.append(_label_map(sample, show_points=True))
    return views


def _label_map(sample: AugmentedSample, show_points: bool) -> Image.Image:
    """Return the top label of every column, with the axes of the ego frame and the points."""
    low = np.asarray(sample.pc_range[:2])
    extent = np.asarray(sample.pc_range[3:5]) - low
    per_metre = 640 / extent[0]
    size = (round(extent[1] * per_metre), 640)
    values = np.full((size[1], size[0], 3), 245, np.uint8)
    if sample.labels is not None:
        top = _uppermost(sample.labels, len(sample.class_names))
        colours = np.vstack([_colours(sample.class_names), [245, 245, 245]]).astype(np.uint8)
        flat = colours[top][::-1, ::-1]  # x up, y left
        values = cv2.resize(flat, size, interpolation=cv2.INTER_NEAREST)

    def place(points: NDArray[np.float64]) -> NDArray[np.int64]:
        offset = (points[:, :2] - low) * per_metre
        return np.column_stack([size[0] - offset[:, 1], size[1] - offset[:, 0]]).astype(np.int64)

    if show_points and sample.points is not None:
        column, row = place(sample.points.astype(np.float64)).T
        inside = (column >= 0) & (column < size[0]) & (row >= 0) & (row < size[1])
        values[row[inside], column[inside]] = (20, 20, 20)
    ego = np.array([[0.0, 0, 0], [_ARROW_M, 0, 0], [0, _ARROW_M, 0]])
    in_grid = ego @ sample.ego2occ[:3, :3].T + sample.ego2occ[:3, 3]
    origin, *tips = (tuple(map(int, point)) for point in place(in_grid))
    for tip, colour in zip(tips, ((220, 0, 0), (0, 120, 0)), strict=True):
        cv2.arrowedLine(values, origin, tip, colour, 3, cv2.LINE_AA, tipLength=0.25)
    picture = Image.fromarray(values)
    dots = ", LiDAR points black" if show_points else ""
    text = f"from above{dots}; ego x red, y green"
    _draw_label(picture, text)
    return picture


def _uppermost(labels: NDArray[np.uint8], empty_label: int) -> NDArray[np.uint8]:
    """Return the label [X, Y] of the highest occupied voxel of every column, free if none."""
    filled = labels != empty_label
    height = labels.shape[2] - 1 - filled[:, :, ::-1].argmax(axis=2)
    top = np.take_along_axis(labels, height[..., None], axis=2)[..., 0]
    return np.where(filled.any(axis=2), top, empty_label)
