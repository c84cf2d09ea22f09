"""Small detectors of every kind for the export tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS

import models.register  # noqa: F401
from scripts.export.source import Source
from tests.models.cases import DETECTOR, HW, merge

RUNTIME = str(Path(__file__).parents[1] / "runtime")
if RUNTIME not in sys.path:
    sys.path.insert(0, RUNTIME)  # configs of these tests import `nano_parts` by that name

from nano_parts import BACKBONE, KINDS, NECK  # noqa: E402

# A decoder of one layer: an export takes seconds for each.
ONE_LAYER = dict(num_refines=[4])


def build_source(kind: str, num_refines: Sequence[int] | None = None, **head: Any) -> Source:
    """Build a detector with random weights; with initial weights images hardly matter."""
    torch.manual_seed(0)
    config = merge(DETECTOR, img_backbone=BACKBONE, img_neck=NECK, **KINDS[kind])
    defaults = dict(num_query=40, score_thr=0.05)
    if kind.startswith("v1"):
        defaults |= dict(score_thr=0.01, max_spread_m=5.0)
    config["pts_bbox_head"] = merge(config["pts_bbox_head"], **(defaults | head))
    if num_refines is not None:
        decoder = config["pts_bbox_head"]["decoder"]
        config["pts_bbox_head"]["decoder"] = merge(decoder, num_refines=list(num_refines))
    detector = MODELS.build(config).eval()
    rng = torch.Generator().manual_seed(0)
    for name, parameter in detector.named_parameters():
        if parameter.ndim > 1 or "bias" in name:
            # keeps the maps within the range of half precision
            scale = 0.03 if name.startswith("img_") else 0.3
            parameter.data += scale * torch.randn(parameter.shape, generator=rng)
    return Source(detector, HW, class_names=tuple("abcde"), config=f"nano_{kind}.py")


@pytest.fixture
def make_source() -> Callable[..., Source]:
    return build_source


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Run on one thread, because the tensors are too small for several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
