"""Attribution of costs, such as time or operations, to the stages of a frame."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from models.detectors import OPUS

UPLOAD = "upload, normalisation"
IMAGES = "image network"
CACHE = "feature cache"
LIDAR_VOXELS = "LiDAR voxels"
LIDAR_SPARSE = "LiDAR sparse network"
LIDAR_DENSE = "LiDAR dense network"
QUERIES = "geometry, queries"
CPD = "CPD"
PREDICTION = "prediction"
OTHER = "other"
#: Stages of a frame in execution order; decoder layers have stages `layer_stage(i, part)`.
STAGES = (UPLOAD, IMAGES, CACHE, LIDAR_VOXELS, LIDAR_SPARSE, LIDAR_DENSE, QUERIES, CPD, PREDICTION,
          OTHER)  # fmt: skip
DECODER = "decoder"
#: Parts of a decoder layer, and the modules that belong to them.
LAYER_PARTS = {
    "position encoding": ("position_encoder",),
    "sampling": ("sampling",),
    "mixing": ("mixing", "img_pts_mixing"),
    "attention": ("self_attn",),
    "feed-forward": ("ffn",),
    "branches": ("reg_branch", "cls_branch"),
    OTHER: (),
}


def layer_stage(index: int, part: str) -> str:
    """Return the name of the stage of a part of decoder layer `index`, counted from 0."""
    return f"{DECODER} layer {index}: {part}"


class Ledger:
    """Attribution of a growing quantity to nested stages, each without its inner stages.

    Args:
        read: Returns the amount spent so far, such as the time.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self._open: list[str] = []
        self._last = 0.0
        self.spent: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Attribute the amount spent in a context to a stage."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = self._read()
        if self._open:
            name = self._open[-1]
            self.spent[name] = self.spent.get(name, 0.0) + now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """Return the amount that each stage spent since the last call."""
        spent, self.spent = self.spent, {}
        return spent


def stages_of(model: OPUS) -> Iterator[tuple[Any, str, str]]:
    """Yield objects, the names of their methods, and the corresponding stages."""
    yield model, "test_step", OTHER
    yield model.data_preprocessor, "forward", UPLOAD
    yield model, "extract_feat", CACHE
    yield model, "image_features", IMAGES
    if model.has_lidar:
        yield model, "extract_lidar", LIDAR_SPARSE
        yield model.pts_voxel_layer, "forward", LIDAR_VOXELS
        for name in ("pts_backbone", "pts_neck", "final_conv"):
            yield model.get_submodule(name), "forward", LIDAR_DENSE
    head = model.pts_bbox_head
    yield head, "forward", QUERIES
    yield head, "predict", PREDICTION
    for densifier in getattr(head, "densifiers", ()):
        yield densifier, "forward", CPD
    decoder: Any = head.transformer["decoder"]
    yield decoder, "forward", DECODER
    for i, layer in enumerate(decoder.decoder_layers):
        yield layer, "forward", layer_stage(i, OTHER)
        for part, names in LAYER_PARTS.items():
            for name in names:
                if hasattr(layer, name):
                    yield getattr(layer, name), "forward", layer_stage(i, part)


@contextmanager
def watched(model: OPUS, ledger: Ledger) -> Iterator[None]:
    """Attribute the costs of a model's frames to stages in a ledger."""
    with ExitStack() as stack:
        for owner, method, name in stages_of(model):
            replacement = _in_stage(getattr(owner, method), ledger, name)
            stack.enter_context(mock.patch.object(owner, method, replacement))
        yield


def _in_stage(function: Callable[..., Any], ledger: Ledger, name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with ledger.stage(name):
            return function(*args, **kwargs)

    return wrapped


def part_of(stage: str) -> str:
    """Return the row of a stage in the table of stages."""
    return DECODER if stage.startswith(DECODER) else stage
