"""Values of another type than a constructor's annotation are rejected when a config is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.value_types import fits

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train_dataloader.dataset.num_frames", "abc", "int"),
        ("train_dataloader.dataset.num_frames", True, "int"),
        ("train_dataloader.dataset.on_error", "ignore", "Literal"),
        ("train_dataloader.dataset.pipeline.0.final_hw", [96], "tuple[int, int]"),
        ("model.pts_bbox_head.num_query", "many", "int"),
        ("model.pts_bbox_head.pc_range", 3, "Sequence[float]"),
        ("test_evaluator.0.mask", "radar", "Literal"),
        ("max_epochs", "nonsense", "int"),
    ],
)
def test_a_value_of_another_type_is_named(key: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ROOT / "configs/toy/opusv2-nano_toy.py", {key: value})
    assert f"is {value!r}, expected" in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, float, True), (True, int, False), (1.0, int, False), ("a", str, True),
        (None, int | None, True), ("a", int | None, False), ([1, 2], tuple[int, int], True),
        ([1], tuple[int, int], False), ([1, "a"], Sequence[int], False),
        ("ab", Sequence[str], False),
        ({"a": 1}, dict, True), ({}, Mapping[str, int], True), (3, dict, False),
        ("x", Literal["x", "y"], True), ("z", Literal["x", "y"], False), (object(), Any, True),
        ((1, 2, 3), tuple[int, ...], True), ([[1, 2]], Sequence[tuple[int, int]], True),
        ([1], list[int] | None, True), (3, list[int] | None, False),
    ],
)  # fmt: skip
def test_types_of_python(value: Any, annotation: Any, expected: bool) -> None:
    assert fits(value, annotation) is expected
