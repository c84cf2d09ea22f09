"""The toy line's checkpoint, its card, and its use by the demo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS

import models.register  # noqa: F401
from scripts.checkpoints import shrink
from scripts.runtime.checkpoint import load_weights, read_checkpoint
from scripts.runtime.errors import ConfigError
from scripts.toy_runs import demo, model_steps, pretrain
from scripts.toy_runs import steps as toy_steps
from tests.models.cases import DETECTOR


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = MODELS.build(DETECTOR)
    path = tmp_path / "last.pth"
    torch.save(dict(state_dict=model.state_dict(), optimizer={}, meta=dict(epoch=3, iter=7)), path)
    return path


def test_half_precision_keeps_a_model(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.pth"
    assert shrink.main([str(checkpoint), "--out", str(out)]) == 0
    assert out.stat().st_size < 0.55 * checkpoint.stat().st_size
    stored = read_checkpoint(out)
    assert set(stored) == {"state_dict", "meta"} and stored["meta"]["iter"] == 7
    model = MODELS.build(DETECTOR)
    load_weights(model, out)  # grids and ranges are compared exactly
    before = read_checkpoint(checkpoint)["state_dict"]
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        torch.testing.assert_close(value, before[name], rtol=1e-3, atol=1e-6)


def test_a_weight_that_half_precision_cannot_hold_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["img_neck.lateral_convs.0.conv.weight"][0] = 1e6
    torch.save(content, checkpoint)
    out = tmp_path / "small.pth"
    assert shrink.main([str(checkpoint), "--out", str(out)]) == 2
    assert "img_neck.lateral_convs.0.conv.weight has values" in capsys.readouterr().err
    assert not out.exists()


def write_report(path: Path, miou: float, ray_iou: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics = {"occ3d/mIoU": miou, "ray/RayIoU": ray_iou}
    facts = dict(checkpoint=dict(sha256="abc"), commit="123456", time="2026-01-01", num_samples=160)
    path.write_text(json.dumps(dict(metrics=metrics, **facts)))
    return path


def test_the_card_tells_data_costs_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = model_steps.ToyData(
        tmp_path / "data", "v1.0-trainval", ("--scenes", "50", "--seed", "9")
    )
    monkeypatch.setattr(pretrain, "PRETRAIN", data)
    data.root.mkdir()
    (data.root / "toy_nuscenes.json").write_text(json.dumps(dict(options=dict(scenes=50))))
    log = tmp_path / "run/20260101/vis_data/scalars.json"
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps(dict(loss=1.0, time=0.5, host_memory=900, iter=14_350)))
    weights = tmp_path / "x.pth"
    torch.save(dict(state_dict=dict(a=torch.zeros(9)), meta=dict(iter=14_400)), weights)
    scores = write_report(tmp_path / "scores.json", 20.0, 15.0)
    prior = write_report(tmp_path / "prior.json", 7.0, 4.0)
    text = pretrain.card(tmp_path / "run", "opusv2-plus-nano_toy", weights, scores, prior)
    for words in (
        f"{weights.stat().st_size:,} bytes, SHA-256 `abc`", "--scenes 50 --seed 9`: 40 scenes",
        "14,400 iterations in 2.0 h", "| mIoU | 7.00 | 20.00 |", "| RayIoU | 4.00 | 15.00 |",
        "on the 160 validation samples", "| commit | 123456 |", "# opusv2-plus-nano_toy.pth",
        "The nano form of OPUS-V2 with the parts", "`configs/toy/opusv2-plus-nano_toy_pretrain.py`",
    ):  # fmt: skip
        assert words in text


def test_the_data_is_not_the_demos() -> None:
    assert model_steps.TOY.root != model_steps.PRETRAIN.root
    assert "--seed" not in model_steps.TOY.options  # the generator's default, 0
    assert "--seed" in model_steps.PRETRAIN.options and "0" not in model_steps.PRETRAIN.options
    assert [path.name for path in model_steps.PRETRAIN.infos] == [
        "nuscenes_infos_train_sweep.pkl", "nuscenes_infos_val_sweep.pkl"
    ]  # fmt: skip


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    path = tmp_path / "shipped.pth"
    path.touch()
    return path


def test_plans(shipped: Path, tmp_path: Path) -> None:
    none = tmp_path / "none.pth"
    assert demo.make_plan(shipped=none) == demo.Plan(demo.DEMO_CONFIG)
    plan = demo.make_plan(shipped=none, long=True)
    assert plan == demo.Plan(demo.LONG_CONFIG, demo.LONG_FACTORS)
    plan = demo.make_plan(shipped=shipped, config="x.py", skip=["pictures"])
    assert plan == demo.Plan("x.py", pictures=False)
    plan = demo.make_plan(shipped=shipped, published=shipped)
    assert plan == demo.Plan(
        demo.FINE_TUNING_CONFIG,
        demo.FINE_TUNING_FACTORS,
        shipped=shipped,
        published=shipped,
        start=shipped,
    )
    for options in (dict(published=none), dict(published=shipped, skip=["published"])):
        assert demo.make_plan(shipped=shipped, **options).published is None
    plan = demo.make_plan(shipped=shipped, from_scratch=True, skip=["shipped"])
    assert (plan.shipped, plan.start, plan.from_scratch) == (None, shipped, demo.DEMO_CONFIG)
    plan = demo.make_plan(shipped=shipped, skip=["fine-tuning"])
    assert plan.shipped == shipped and not plan.trains
    plan = demo.make_plan(shipped=shipped, published=none, long=True)
    assert plan.start is None and f"img_neck.init_cfg.checkpoint={shipped}" in plan.options
    for options in (dict(shipped=none), dict(shipped=shipped)):
        with pytest.raises(ConfigError, match=r"omits every step|remove --skip"):
            demo.make_plan(skip=["shipped", "fine-tuning"], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "steps", "columns"),
    [
        (
            dict(from_scratch=True),
            [
                *("prior", "scores", "pictures", "scores", "training", "scores", "pictures"),
                *("training", "scores"),
            ],
            "| held-out scenes | image-blind prior | shipped | published recipe | from scratch "
            "| model |",
        ),
        (
            dict(skip=["fine-tuning", "pictures", "published"]),
            ["prior", "scores"],
            "| held-out scenes | image-blind prior | shipped |",
        ),
        (
            dict(skip=["shipped", "pictures", "published"]),
            ["prior", "training", "scores"],
            "| held-out scenes | image-blind prior | model | factor |",
        ),
    ],
)
def test_a_demo_with_a_shipped_model(
    options: dict[str, Any],
    steps: list[str],
    columns: str,
    shipped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []
    names: list[str] = []

    def run(
        self: toy_steps.Steps, name: str, command: list[str], key: str, outputs: list[Path]
    ) -> bool:
        names.append(name)
        commands.append(command)
        self.records[name] = toy_steps.Record(key, 1.0, 1.0)
        for out in outputs:
            if out.suffix == ".json":
                write_report(out, *((7.0, 4.0) if name == "prior" else (20.0, 15.0)))
            elif out.name == "last_checkpoint":
                out.with_name("last.pth").touch()
                out.write_text(str(out.with_name("last.pth")))
        return True

    keys: Callable[..., str] = lambda *args: "key"  # noqa: E731
    monkeypatch.setattr(demo, "make_data", keys)
    for name in ("config_key", "source_key"):
        monkeypatch.setattr(model_steps, name, keys)
    monkeypatch.setattr(toy_steps.Steps, "run", run)
    demo.run_demo(demo.make_plan(shipped=shipped, published=shipped, **options))
    assert names == steps
    assert columns in capsys.readouterr().out
    for name, command in zip(names, commands, strict=True):
        if name == "training":
            is_fine_tuning = demo.FINE_TUNING_CONFIG in command
            assert ("--load-from" in command) is is_fine_tuning
            # from scratch as long as the fine-tuning
            assert ("max_epochs=6" in command) is not is_fine_tuning
