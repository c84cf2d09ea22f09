"""Values of another type than a constructor is annotated with are named before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.preflight import check_evaluation
from scripts.runtime.setting_types import check_types

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*/opus*.py")), ids=lambda p: p.stem
)
def test_all_configs_pass(path: Path) -> None:
    cfg = load_config(path)
    check_types(cfg)
    check_evaluation(cfg)


@pytest.mark.parametrize(
    ("key", "value", "takes"),
    [
        ("train_dataloader.dataset.num_frames", "abc", "int"),
        ("train_dataloader.dataset.num_frames", True, "int"),
        ("train_dataloader.dataset.on_error", "ignore", "Literal"),
        ("train_dataloader.dataset.pipeline.0.final_hw", [96], "tuple[int, int]"),
        ("model.pts_bbox_head.num_query", "many", "int"),
        ("model.pts_bbox_head.pc_range", 3, "Sequence[float]"),
        ("test_evaluator.0.mask", "radar", "Literal"),
    ],
)
def test_a_value_of_another_type_is_named(key: str, value: Any, takes: str) -> None:
    cfg = load_config(ROOT / "configs/toy/opusv2-nano_toy.py")
    cfg.merge_from_dict({key: value})
    with pytest.raises(ConfigError) as caught:
        check_types(cfg)
    assert f".{key.rpartition('.')[2]} is {value!r}, but" in str(caught.value)
    assert takes in str(caught.value)
