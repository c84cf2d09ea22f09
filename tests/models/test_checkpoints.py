"""Checkpoints of other libraries and versions, and commands that inspect and merge them."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn

from models.layers import SparseConv3d, SubMConv3d, convert_layouts_together
from models.weight_layouts import (
    SparseLayout,
    detect_layout,
    sparse_weight_shapes,
    to_layout,
    to_own_layout,
)
from scripts.checkpoints import fusion_pretrain as gen_fusion_pretrain_model
from scripts.checkpoints import inspection as inspect_checkpoint
from scripts.runtime.checkpoint import (
    CheckpointError,
    check_fit,
    load_weights,
    start_from,
    weights_of,
)
from tests.models.cases import DETECTOR, HEAD, POINT_HEAD, N, merge, with_lidar

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fusion() -> Any:
    return MODELS.build(merge(DETECTOR, **with_lidar(HEAD)))


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A config of the small V2 model."""
    path = tmp_path / "small.py"
    path.write_text(f"custom_imports = dict(imports=['models.register'])\nmodel = {DETECTOR!r}\n")
    return path


def equal(a: Any, b: Any) -> bool:
    return all(torch.equal(value, b[key]) for key, value in a.items()) and len(a) == len(b)


@pytest.mark.parametrize("layout", SparseLayout)
def test_layouts_are_read_and_written(layout: SparseLayout, fusion: Any) -> None:
    foreign = to_layout(fusion, layout)
    assert detect_layout(foreign, fusion) is layout
    own = fusion.state_dict()
    assert equal(to_own_layout(foreign, fusion), own)
    changed = [key for key, value in foreign.items() if value.shape != own[key].shape]
    assert set(changed) <= set(sparse_weight_shapes(fusion))
    assert bool(changed) == (layout is not SparseLayout.SPCONV2)
    other = MODELS.build(merge(DETECTOR, **with_lidar(HEAD)))
    other.load_state_dict(foreign, strict=True)
    assert equal(other.state_dict(), own)


@pytest.mark.parametrize("layout", SparseLayout)
def test_every_loader_converts_layouts(layout: SparseLayout, fusion: Any, tmp_path: Path) -> None:
    """MMEngine's loading functions do not call the model's ``load_state_dict``."""
    own, foreign = fusion.state_dict(), to_layout(fusion, layout)
    torch.save(dict(state_dict=foreign), tmp_path / "weights.pth")
    loaded = MODELS.build(merge(DETECTOR, **with_lidar(HEAD)))
    loaded.cache.fetch([["old"]], lambda positions: [torch.zeros(1, N, 1, 1, 1)])
    load_checkpoint(loaded, str(tmp_path / "weights.pth"), strict=True)
    assert equal(loaded.state_dict(), own) and len(loaded.cache) == 0

    parts = nn.ModuleDict(dict(model=MODELS.build(merge(DETECTOR, **with_lidar(HEAD)))))
    parts.load_state_dict({f"model.{key}": value for key, value in foreign.items()})
    assert equal(parts["model"].state_dict(), own)
    averaged = ExponentialMovingAverage(loaded)  # a deep copy
    averaged.module.load_state_dict(foreign)
    assert equal(averaged.module.state_dict(), own)

    encoder = copy.deepcopy(fusion.pts_middle_encoder)
    prefix = "pts_middle_encoder."
    part = {k.removeprefix(prefix): v for k, v in foreign.items() if k.startswith(prefix)}
    encoder.load_state_dict(part)
    assert equal(encoder.state_dict(), fusion.pts_middle_encoder.state_dict())


@pytest.mark.parametrize("layout", SparseLayout)
def test_a_single_convolution_converts_its_weight(layout: SparseLayout) -> None:
    model, loaded = SubMConv3d(4, 6), SubMConv3d(4, 6)
    loaded.load_state_dict(to_layout(model, layout))
    assert equal(loaded.state_dict(), model.state_dict())


def test_layouts_are_those_of_the_libraries() -> None:
    mmcv_ops, spconv = pytest.importorskip("mmcv.ops"), pytest.importorskip("spconv.pytorch")
    own = SubMConv3d(5, 7).weight.shape
    for library, layout in ((mmcv_ops, SparseLayout.SPCONV1), (spconv, SparseLayout.SPCONV2)):
        theirs = library.SubMConv3d(5, 7, 3, bias=False).weight
        assert theirs.shape == layout.shape(own)
    # the values too: one voxel and one neighbour along the first axis
    weight = torch.randn(7, 3, 3, 3, 5)
    spconv1 = SparseLayout.SPCONV1.store(weight)
    assert torch.equal(spconv1[2, 1, 1], weight[:, 2, 1, 1].T)


def test_a_square_weight_follows_the_others() -> None:
    model = nn.Sequential(SparseConv3d(4, 4), SubMConv3d(4, 6))
    for layout in SparseLayout:
        foreign = to_layout(model, layout)
        assert detect_layout(foreign, model) is layout
        assert torch.equal(to_own_layout(foreign, model)["0.weight"], model[0].weight)
    assert detect_layout({"1.weight": torch.zeros(1, 3, 3, 3, 4)}, model) is None
    convert_layouts_together(model)
    original = {key: value.clone() for key, value in model.state_dict().items()}
    for layout in SparseLayout:
        foreign = {f"0.{key}": value.clone() for key, value in to_layout(model, layout).items()}
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        nn.ModuleList([model]).load_state_dict(foreign)
        assert equal(model.state_dict(), original)


def old_meta() -> dict[str, Any]:
    return dict(mmcv_version="1.3.18", epoch=24, iter=84384, CLASSES=("car",), hook_msgs={})


def new_meta() -> dict[str, Any]:
    return dict(mmengine_version="0.10.7", epoch=2, iter=9, dataset_meta=dict(classes=("car",)))


@pytest.mark.parametrize("with_optimizer", [False, True])
@pytest.mark.parametrize("generation", ["MMCV 1", "MMEngine"])
def test_checkpoints_of_both_generations_load(
    generation: str,
    with_optimizer: bool,
    tmp_path: Path,
    make_detector: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    config_file: Path,
) -> None:
    source, model = make_detector(), make_detector()
    old = generation == "MMCV 1"
    content: dict[str, Any] = dict(meta=old_meta() if old else new_meta())
    layout = SparseLayout.SPCONV1 if old else SparseLayout.SPCONV2
    content["state_dict"] = OrderedDict(to_layout(source, layout))
    if not old:
        buffer = HistoryBuffer()
        buffer.update(0.5)
        content["message_hub"] = dict(log_scalars={"loss": buffer}, runtime_info=dict(seed=1))
    if with_optimizer:
        optimizer = torch.optim.AdamW(source.parameters())
        sum(p.sum() for p in source.parameters()).backward()
        optimizer.step()
        content["state_dict"] = OrderedDict(to_layout(source, layout))
        content["optimizer"] = optimizer.state_dict() | dict(scale=np.float64(2.0))
    path = tmp_path / "published.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    info = load_weights(model, path)
    assert (info.epoch, info.iteration) == ((24, 84384) if old else (2, 9))
    assert equal(model.state_dict(), source.state_dict())
    assert inspect_checkpoint.main([str(config_file), str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"optimizer state: {'yes' if with_optimizer else 'no'}" in printed
    assert f"sparse convolutions: {'spconv 1 or mmcv' if old else 'spconv 2'}" in printed
    assert "missing: 0\nunexpected: 0\nmismatched: 0" in printed


def test_another_model_is_refused_with_the_first_differences(
    make_detector: Callable[..., Any],
) -> None:
    source = make_detector(pts_bbox_head=POINT_HEAD)
    weights = weights_of(dict(state_dict=source.state_dict()), make_detector())
    with pytest.raises(CheckpointError) as caught:
        check_fit(weights, make_detector(), "v1.pth")
    sentence = str(caught.value)
    assert sentence.startswith("v1.pth is a checkpoint of another model (missing: pts_bbox_head.")
    assert (
        "sampling_prototype.weight" in sentence and "of another shape: pts_bbox_head." in sentence
    )
    assert "more" in sentence and sentence.endswith("use the config that it was trained with")


def test_another_range_is_refused_and_another_voxel_size_is_not(
    tmp_path: Path, make_detector: Callable[..., Any]
) -> None:
    torch.save(dict(state_dict=make_detector().state_dict()), tmp_path / "w.pth")
    fine = make_detector(pts_bbox_head=HEAD | dict(voxel_size=[0.4, 0.4, 0.4]))
    load_weights(fine, tmp_path / "w.pth")
    assert fine.pts_bbox_head.grid_shape == (40, 30, 8)
    assert fine.pts_bbox_head.densifiers[-1].voxel_num.tolist() == [40, 30, 8]
    shifted = make_detector(pts_bbox_head=HEAD | dict(pc_range=[0.0, -6, -1, 16, 6, 2.2]))
    with pytest.raises(CheckpointError, match=r"w\.pth does not fit the config: pts_bbox_head\."):
        load_weights(shifted, tmp_path / "w.pth")


def test_inspection_names_every_difference(
    tmp_path: Path, config_file: Path, capsys: pytest.CaptureFixture[str], make_detector: Any
) -> None:
    weights = dict(make_detector().state_dict())
    del weights["img_neck.fpn_convs.0.conv.bias"]
    weights["img_neck.extra"] = torch.zeros(3)
    weights["pts_bbox_head.init_points.weight"] = torch.zeros(11, 3)
    torch.save(dict(state_dict=weights), tmp_path / "odd.pth")
    assert inspect_checkpoint.main([str(config_file), str(tmp_path / "odd.pth")]) == 1
    printed = capsys.readouterr().out
    assert "missing: 1\n  img_neck.fpn_convs.0.conv.bias\n" in printed
    assert "unexpected: 1\n  img_neck.extra\n" in printed
    assert (
        "mismatched: 1\n  pts_bbox_head.init_points.weight "
        "((11, 3) in the file, (10, 3) in the model)" in printed
    )
    row = next(line.split() for line in printed.splitlines() if line.startswith("  img_neck "))
    assert row[1:3] == ["12", "12"]  # one less and one more
    weights = make_detector().state_dict()
    weights["pts_bbox_head.pc_range"] += 1
    torch.save(dict(state_dict=weights), tmp_path / "elsewhere.pth")
    assert inspect_checkpoint.main([str(config_file), str(tmp_path / "elsewhere.pth")]) == 1
    assert "mismatched: 1\n  pts_bbox_head.pc_range ([-7.0, -5.0," in capsys.readouterr().out
    assert inspect_checkpoint.main([str(config_file), str(tmp_path / "nowhere.pth")]) == 2
    assert "nowhere.pth does not exist" in capsys.readouterr().err


def test_image_pretraining_is_renamed_by_the_config(
    tmp_path: Path, make_detector: Callable[..., Any]
) -> None:
    """As with the nuImages Cascade Mask R-CNN: backbone.* is taken, the rest is not."""
    runtime: dict[str, Any] = {}
    exec((ROOT / "configs" / "_base_" / "default_runtime.py").read_text(), runtime)
    source, model = make_detector(), make_detector()
    weights = {f"backbone.{k}": v + 1 for k, v in source.img_backbone.state_dict().items()}
    rest = {"neck.lateral_convs.0.conv.weight": torch.zeros(1), "roi_head.x": torch.zeros(1)}
    torch.save(dict(state_dict=weights | rest, meta=old_meta()), tmp_path / "rcnn.pth")
    before = {k: v.clone() for k, v in model.state_dict().items() if "img_backbone" not in k}
    sentence = start_from(model, tmp_path / "rcnn.pth", runtime["revise_keys"])
    assert f"{len(weights)} of {len(model.state_dict())} tensors loaded" in sentence
    assert "not used: neck.lateral_convs.0.conv.weight, roi_head.x" in sentence
    for key, value in model.img_backbone.state_dict().items():
        assert torch.equal(value, weights[f"backbone.{key}"])
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_merged_pretraining_starts_a_fusion_model(tmp_path: Path, fusion: Any) -> None:
    image = {f"backbone.{k}": v + 1 for k, v in fusion.img_backbone.state_dict().items()}
    torch.save(dict(state_dict=image | {"neck.x": torch.zeros(1)}), tmp_path / "image.pth")
    prefixes = ("pts_middle_encoder.", "pts_backbone.", "pts_neck.")
    stored = to_layout(fusion, SparseLayout.SPCONV1)  # as mmdet3d's releases
    lidar = {key: value for key, value in stored.items() if key.startswith(prefixes)}
    content = dict(state_dict=lidar | {"pts_bbox_head.y": torch.zeros(1)}, meta=old_meta())
    torch.save(content, tmp_path / "lidar.pth")
    out = tmp_path / "made" / "pretrain.pth"
    command = [
        sys.executable, str(ROOT / "scripts" / "gen_fusion_pretrain_model.py"),
        "--image", "image.pth", "--lidar", "lidar.pth", "--out", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{out}: {len(image) + len(lidar)} entries written" in done.stdout
    assert list(out.parent.iterdir()) == [out]
    model = MODELS.build(merge(DETECTOR, **with_lidar(HEAD)))
    sentence = start_from(model, out)
    assert f"{len(image) + len(lidar)} of" in sentence and "not used" not in sentence
    loaded, original = model.state_dict(), fusion.state_dict()
    for key in lidar:
        assert torch.equal(loaded[key], original[key]), key
    for key in image:
        assert torch.equal(loaded[f"img_{key}"], image[key])


def test_merge_names_the_part_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(dict(state_dict={"backbone.a": torch.zeros(1)}), tmp_path / "image.pth")
    torch.save(dict(state_dict={"pts_backbone.a": torch.zeros(1)}), tmp_path / "lidar.pth")
    paths = {name: str(tmp_path / f"{name}.pth") for name in ("image", "lidar", "out")}

    def run(image: str, lidar: str) -> str:
        arguments = ["--image", image, "--lidar", lidar, "--out", paths["out"]]
        assert gen_fusion_pretrain_model.main(arguments) == 2
        return capsys.readouterr().err

    assert "lidar.pth has no entries pts_middle_encoder.*" in run(paths["image"], paths["lidar"])
    sentence = run(paths["lidar"], paths["lidar"])
    assert "lidar.pth has no entries backbone.* or img_backbone.*" in sentence
    assert "out.pth does not exist" in run(paths["out"], paths["lidar"])
    assert not Path(paths["out"]).exists()
