from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.toy_runs import family

ROOT = Path(__file__).resolve().parents[2]


def score(model: str, miou: float, ray_iou: float, size: float | None = None) -> family.Score:
    return family.Score(model, size, 1_230_000, 9.5, 800.0, (miou, ray_iou), (5.0, 4.0))


def test_every_model_has_a_config() -> None:
    names = {path.stem for path in (ROOT / "configs" / "toy").glob("*.py")}
    others = {"opusv2-nano_toy-surroundocc", "opusv2-nano_toy_recipes"}  # not in the tables
    of_demo = {
        "opusv2-nano_toy_pretrain", "opusv2-plus-nano_toy",
        *(f"opusv2-plus-nano_toy_{x}" for x in ("pretrain", "finetune", "long", "long_pretrained")),
    }  # fmt: skip
    assert names == {*family.OCC3D, *family.OCCUPANCY, *others, *of_demo}


def test_a_model_must_beat_the_prior_and_fusion_its_camera_form() -> None:
    good = [score("opusv2-nano_toy", 6, 5), score("opusv2-fusion-nano_toy", 7, 6)]
    assert family.check(good) == []
    weak = [score("opusv2-nano_toy", 6, 3.9), score("opusv2-fusion-nano_toy", 5.5, 6)]
    assert family.check(weak) == [
        "opusv2-nano_toy: RayIoU 3.90, the prior's is 4.00",
        "opusv2-fusion-nano_toy: mIoU 5.50, without LiDAR it is 6.00",
    ]


def test_only_the_voxels_of_the_training_are_judged() -> None:
    name = "opusv2-nano_toy-occupancy-0.4m"
    assert family.check([score(name, 6, 5, 0.4), score(name, 1, 1, 0.2)]) == []
    assert len(family.check([score(name, 1, 5, 0.4), score(name, 6, 5, 0.2)])) == 1


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    family.print_tables([score("a", 6, 5), score("b", 7, 8, 0.2)])
    _, first, _, row, _, second, rule, other = capsys.readouterr().out.splitlines()
    assert row == "| a | 1.23 M | 9.5 | 800 | **6.00** | 5.00 | **5.00** | 4.00 |"
    assert other == "| b | 0.2 m | 1.23 M | 9.5 | 800 | **7.00** | 5.00 | **8.00** | 4.00 |"
    assert row.count("|") == first.count("|")
    assert other.count("|") == second.count("|") == rule.count("|")


def test_scores_are_found_under_any_prefix(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"metrics": {"openocc/mIoU": 3.0, "ray/RayIoU": 4.0}}))
    assert family.read_scores(path) == (3.0, 4.0)
    path.write_text(json.dumps({"metrics": {"openocc/mIoU": 3.0}}))
    with pytest.raises(RuntimeError, match="has no RayIoU"):
        family.read_scores(path)
