"""Every shipped config of the family: effective values, published parameters, small runs."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.fit import fit_config
from scripts.runtime.launch import Launch
from tests.models.cases import HW, camera_matrices, make_batch, make_points

ROOT = Path(__file__).parents[2]


class Size(NamedTuple):
    """Differences between the published variants of a family."""

    queries: int
    refines: list[int]  # points of a query after each decoder layer
    points: int  # sampling points of a group


V1 = {
    "t": Size(600, [1, 4, 16, 32, 64, 128], 4),
    "s": Size(1200, [1, 4, 8, 16, 32, 64], 2),
    "m": Size(2400, [1, 2, 4, 8, 16, 32], 2),
    "l": Size(4800, [1, 2, 4, 8, 16, 16], 2),
}
V2 = {
    "t": Size(600, [8, 16, 32, 64, 128], 4),
    "s": Size(1200, [4, 8, 16, 32, 64], 2),
    "m": Size(2400, [2, 4, 8, 16, 32], 2),
    "l": Size(4800, [1, 2, 4, 8, 16], 2),
}
OCC3D_WEIGHTS = [10, 5, 10, 5, 5, 10, 10, 5, 10, 5, 5, 1, 5, 1, 1, 2, 1]
OCC3D = dict(
    pc_range=[-40, -40, -1, 40, 40, 5.4], voxel_size=[0.4] * 3, num_classes=17, empty_label=17
)
OPENOCCUPANCY = dict(
    pc_range=[-51.2, -51.2, -5, 51.2, 51.2, 3], voxel_size=[0.2] * 3, num_classes=16, empty_label=16
)
SURROUNDOCC = dict(
    pc_range=[-50, -50, -5, 50, 50, 3], voxel_size=[0.5] * 3, num_classes=16, empty_label=16
)


class Family(NamedTuple):
    """Configs that differ only in their size."""

    folder: str
    name: str  # with a place for the size
    sizes: dict[str, Size]
    grid: dict[str, Any]
    epochs: int
    flips: bool  # BEV flips in training
    lidar: bool = False
    density_aware: bool = False
    plus: bool = False  # with the parts of docs/recipes.md


TAIL = "_r50_704x256_8f_"
FAMILIES = [
    Family("opusv1_nusc-occ3d", "opusv1-{}" + TAIL + "nusc-occ3d_100e", V1, OCC3D, 100, False),
    Family(
        "opusv1-fusion_nusc-occ3d", "opusv1-fusion-{}" + TAIL + "nusc-occ3d_100e",
        V1, OCC3D, 100, False, lidar=True,
    ),
    Family("opusv2_nusc-occ3d", "opusv2-{}" + TAIL + "nusc-occ3d_100e", V2, OCC3D, 100, True),
    Family("opusv2_nusc-occ3d", "opusv2-{}" + TAIL + "nusc-occ3d_50e", V2, OCC3D, 50, True),
    Family(
        "opusv2_nusc-occ3d", "opusv2-{}" + TAIL + "dcdloss_nusc-occ3d_50e",
        {"t": V2["t"]}, OCC3D, 50, True, density_aware=True,
    ),
    Family(
        "opusv2_nusc-occupancy", "opusv2-{}" + TAIL + "nusc-occupancy_50e",
        V2, OPENOCCUPANCY, 50, True,
    ),
    Family(
        "opusv2-fusion_nusc-occ3d", "opusv2-fusion-{}" + TAIL + "nusc-occ3d_100e",
        {"t": V2["t"], "s": V2["s"]}, OCC3D, 100, True, lidar=True,
    ),
    Family(
        "opusv2-fusion_nusc-occupancy", "opusv2-fusion-{}" + TAIL + "nusc-occupancy_50e",
        {"t": V2["t"], "s": V2["s"]}, OPENOCCUPANCY, 50, True, lidar=True,
    ),
    Family(
        "opusv2_nusc-surroundocc", "opusv2-{}" + TAIL + "nusc-surroundocc_24e",
        V2, SURROUNDOCC, 24, True,
    ),
    Family(
        "opusv2-plus_nusc-occ3d", "opusv2-plus-{}" + TAIL + "nusc-occ3d_50e",
        V2, OCC3D, 50, True, plus=True,
    ),
    Family(
        "opusv2-plus_nusc-occupancy", "opusv2-plus-{}" + TAIL + "nusc-occupancy_50e",
        V2, OPENOCCUPANCY, 50, True, plus=True,
    ),
]  # fmt: skip
CASES = [
    pytest.param(family, size, id=family.name.format(size))
    for family in FAMILIES
    for size in family.sizes
]
UNPUBLISHED = ("opusv2-fusion", "opusv2-plus")


def path_of(family: Family, size: str) -> Path:
    return ROOT / "configs" / family.folder / f"{family.name.format(size)}.py"


@cache
def manifests() -> dict[str, dict[str, list[Any]]]:
    """Return names, shapes and types of all entries of the published checkpoints."""
    packed = (ROOT / "tests" / "golden" / "checkpoint_manifests.json.xz").read_bytes()
    published: dict[str, dict[str, list[Any]]] = json.loads(lzma.decompress(packed))
    return published


def test_every_config_of_the_family_is_tested() -> None:
    shipped = {path.stem for path in (ROOT / "configs").glob("opus*/*.py")}
    tested = {family.name.format(size) for family in FAMILIES for size in family.sizes}
    assert shipped == tested
    published = {name for name in tested if not name.startswith(UNPUBLISHED)}
    assert {name for name in published if "surroundocc" not in name} == set(manifests())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("opus*/*.py")), ids=lambda p: p.stem
)
def test_config_is_a_small_delta(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 12  # five files that it builds upon among them


@pytest.mark.parametrize(("family", "size"), CASES)
def test_effective_values(family: Family, size: str) -> None:
    config = load_config(path_of(family, size))
    fit_config(config, Launch())  # as train.py does
    check_head(family, family.sizes[size], config.model.pts_bbox_head)
    check_networks(family, config.model)
    check_training(family, config)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        dataset = loader.dataset
        assert dataset.num_frames == 8 and len(dataset.class_names) == family.grid["num_classes"]
        assert list(dataset.pc_range) == family.grid["pc_range"]
        assert list(dataset.voxel_size) == family.grid["voxel_size"]
        assert dataset.get("use_lidar", False) == family.lidar
        steps = [step.type for step in dataset.pipeline]
        assert ("LoadLidarSweeps" in steps) == family.lidar
    steps = [step.type for step in config.train_dataloader.dataset.pipeline]
    flips = config.train_dataloader.dataset.pipeline[steps.index("RandomFlipBEV")].bev_flip_prob
    assert flips == (0.5 if family.flips else 0.0)


def check_head(family: Family, size: Size, head: Any) -> None:
    v1 = family.name.startswith("opusv1")
    assert head.type == ("PointHead" if v1 else "CPDHead")
    assert (head.num_query, head.decoder.num_refines, head.decoder.num_points) == size
    assert {key: head[key] for key in family.grid} == family.grid
    assert (head.num_frames, head.num_cams, head.embed_dims, head.num_levels) == (8, 6, 256, 4)
    assert head.score_thr == (0.5 if v1 else 0.25)
    assert head.get("use_lidar", False) == family.lidar
    decoder = head.decoder
    assert decoder.sampling_pattern == ("scaled_offset" if v1 else "prototype")
    assert decoder.get("prior_probability") == (0.01 if v1 else None)
    assert decoder.get("mixed_points", 32) == (None if family.lidar else 32)
    assert (decoder.num_groups, decoder.num_heads, decoder.ffn_dims) == (4, 8, 512)
    assert (decoder.dropout, decoder.level_pairing) == (0.1, "published")
    if v1:
        assert (head.max_spread_m, head.padding) == (3.0, True)
    else:
        assert head.densifier.pfn_channels == [64, 64] and head.point_channels == 32
    position_code = "where_used" if family.plus else "added"
    assert decoder.get("position_code", "added") == position_code
    seen = [head.get(key, 0) for key in ("num_seen_queries", "num_seen_points")]
    assert seen == ([size.queries // 2, 2400] if family.plus else [0, 0])
    assert head.get("seen_level", -1) == (2 if family.plus else -1)
    weights = OCC3D_WEIGHTS if family.grid is OCC3D else OCC3D_WEIGHTS[1:]
    loss = head.loss_cls
    assert (loss.gamma, loss.alpha, loss.loss_weight) == (2.0, 0.25, 2.0)
    assert loss.class_weights == weights
    loss = head.loss_pts
    assert (loss.beta, loss.density_aware) == (0.2, family.density_aware)
    assert loss.loss_weight == (0.25 if family.density_aware else 0.5)
    assert (loss.far_weight, loss.rare_weight, loss.rare_classes) == (5.0, 10.0, [0, 2, 5, 8])


def check_networks(family: Family, model: Any) -> None:
    backbone = model.img_backbone
    assert (backbone.type, backbone.depth, backbone.out_indices) == (
        "mmdet.ResNet",
        50,
        (0, 1, 2, 3),
    )
    assert (backbone.frozen_stages, backbone.norm_eval, backbone.with_cp) == (1, True, True)
    assert backbone.init_cfg.prefix == "backbone."
    assert (model.img_neck.out_channels, model.img_neck.num_outs) == (256, 4)
    assert not {"grid_mask", "stop_prev_grad", "streaming"} & set(model)
    assert (model.get("img_aux_head") or {}).get("type") == (
        "FirstHitHead" if family.plus else None
    )
    assert model.get("loss_normalizer", "batch") == "batch"
    assert model.data_preprocessor.distortion.type == "PhotometricDistortion"
    if not family.lidar:
        assert "pts_middle_encoder" not in model
        return
    occ3d = family.grid is OCC3D
    voxels = model.pts_voxel_layer
    assert voxels.voxel_size == ([0.05, 0.05, 0.16] if occ3d else [0.064, 0.064, 0.2])
    assert (voxels.max_points, voxels.max_voxels) == (10, (90_000, 120_000))
    assert model.pts_middle_encoder.sparse_shape == [41, 1600, 1600]
    assert model.pts_middle_encoder.encoder_paddings == (
        (0, 0, 1), (0, 0, 1), (0, 0, (0, 1, 1)), (0, 0),
    )  # fmt: skip


def check_training(family: Family, config: Config) -> None:
    wrapper = config.optim_wrapper
    assert (wrapper.optimizer.type, wrapper.optimizer.lr) == ("AdamW", 2e-4)
    assert (wrapper.optimizer.weight_decay, wrapper.clip_grad.max_norm) == (0.01, 35)
    rates = {key: value.lr_mult for key, value in wrapper.paramwise_cfg.custom_keys.items()}
    assert rates == {"img_backbone": 0.1, "sampling_offset": 0.1}
    assert config.batch_size == config.train_dataloader.batch_size == 8
    assert config.train_cfg.max_epochs == family.epochs
    warm_up, decay = config.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (1 / 3, 501, False)
    assert decay.eta_min_ratio == 1e-3 and not {"T_max", "end"} & set(decay)  # the training's end
    assert not decay.get("convert_to_iter_based", False)
    expected = "pretrain/fusion_pretrain_model.pth" if family.lidar else None
    assert config.load_from == expected


@pytest.mark.parametrize(("family", "size"), CASES)
def test_state_dict_is_the_published_one(family: Family, size: str) -> None:
    with torch.device("meta"):
        model = MODELS.build(load_config(path_of(family, size)).model)
    check_dropouts(model)
    ours = {
        name: [list(value.shape), str(value.dtype).removeprefix("torch.")]
        for name, value in model.state_dict().items()
    }
    name = family.name.format(size)
    if "surroundocc" in name:  # as many classes as OpenOccupancy
        name = name.replace("surroundocc_24e", "occupancy_50e")
    if not name.startswith(UNPUBLISHED):
        assert ours == manifests()[name]
        return
    if family.plus:
        parts = ("img_aux_head.", "pts_bbox_head.seen_feats.", "pts_bbox_head.seen_point_feats.")
        assert {name.split(".")[0] for name in ours if name.startswith(parts)} == {
            "img_aux_head", "pts_bbox_head",
        }  # fmt: skip
        published = manifests()[name.replace("-plus", "")]
        assert {k: v for k, v in ours.items() if not k.startswith(parts)} == published
        return
    # V2-Fusion: the head of V2 on the image and LiDAR networks of V1-Fusion
    networks = manifests()[f"opusv1-fusion-{size}{TAIL}nusc-occ3d_100e"]
    head = manifests()[name.replace("-fusion", "")]
    assert {k: v for k, v in ours.items() if not k.startswith("pts_bbox_head.")} == {
        k: v for k, v in networks.items() if not k.startswith("pts_bbox_head.")
    }
    expected = {k.replace(".mixing.", ".img_pts_mixing.") for k in head if "init_points" not in k}
    assert {k for k in ours if k.startswith("pts_bbox_head.")} == {
        k for k in expected if k.startswith("pts_bbox_head.")
    }


def check_dropouts(model: Any) -> None:
    """Dropout applies only to attention weights and both layers of the feed-forward networks."""
    assert not any(isinstance(module, nn.modules.dropout._DropoutNd) for module in model.modules())
    rates = {
        name: module.dropout for name, module in model.named_modules() if hasattr(module, "dropout")
    }
    prefix = "pts_bbox_head.transformer.decoder.decoder_layers"
    layers = range(model.pts_bbox_head.num_layers)
    parts = ("self_attn.attention.attn", "ffn")
    assert rates == {f"{prefix}.{layer}.{part}": 0.1 for layer in layers for part in parts}


def shrink(config: Config) -> dict[str, Any]:
    """Return the model of a config with few queries, frames and voxels, to run on a CPU."""
    model = config.model
    model.img_backbone.update(init_cfg=None, depth=18)
    model.img_neck.in_channels = [64, 128, 256, 512]
    head = model.pts_bbox_head
    head.update(num_query=8, num_seen_queries=min(head.get("num_seen_queries", 0), 4))
    head.decoder.num_refines = [min(points, 8) for points in head.decoder.num_refines]
    if "pts_voxel_layer" in model:
        low_high = torch.tensor(head.pc_range).view(2, 3)
        x, y, z = ((low_high[1] - low_high[0]) / torch.tensor([160, 160, 40])).tolist()
        model.pts_voxel_layer.voxel_size = [x, y, z]
        model.pts_middle_encoder.sparse_shape = [41, 160, 160]
    return model


@pytest.mark.parametrize(
    ("family", "size"),
    [case for case in CASES if case.values[1] == "t" or case.id == FAMILIES[2].name.format("l")],
)
def test_small_run_and_gradients(family: Family, size: str) -> None:
    model = MODELS.build(shrink(load_config(path_of(family, size), dict(num_frames=1)))).train()
    losses = small_run(model, camera_matrices(1))
    layers = len(family.sizes[size].refines)
    assert len(losses) == 2 * layers + (not family.lidar) + 2 * family.plus


def small_run(model: Any, ego2img: torch.Tensor) -> dict[str, torch.Tensor]:
    """Take a training step and a prediction on a small scene; return the losses."""
    batch = make_batch(0, num_frames=1)
    head = model.pts_bbox_head
    if head.use_lidar:
        points = make_points(0, number=200)
        points[:, :3] *= 4
        batch["inputs"]["points"] = [points]
    sample = batch["data_samples"][0]
    sample.ego2img = ego2img
    empty = torch.full(head.grid_shape, head.empty_label, dtype=torch.uint8)
    sample.set_data(dict(voxel_semantics=empty))
    sample.voxel_semantics[10:110, 90:110, 2] = 11
    if head.num_classes == 17:
        sample.set_data(dict(mask_camera=torch.ones(head.grid_shape, dtype=torch.bool)))
    else:
        del sample.mask_camera
    data = model.data_preprocessor(batch, training=True)
    assert data["inputs"]["img"].shape == (1, 6, 3, *HW)
    losses: dict[str, torch.Tensor] = model(**data, mode="loss")
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    with torch.no_grad():
        (found,) = model.eval()(**data, mode="predict")
    assert found.pred_coords.shape == (len(found.pred_labels), 3)
    return losses


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "toy").glob("*.py")), ids=lambda p: p.stem
)
def test_toy_config_runs(path: Path) -> None:
    config = load_config(path)
    fit_config(config, Launch())
    torch.manual_seed(0)
    model = MODELS.build(config.model).train()
    dataset = config.train_dataloader.dataset
    assert model.pts_bbox_head.num_classes == len(dataset.class_names)
    assert (
        ("fusion" in path.stem) == model.pts_bbox_head.use_lidar == dataset.get("use_lidar", False)
    )
    losses = small_run(model, camera_matrices(1))
    assert {"img.loss_cls", "img.loss_depth"} <= losses.keys()


def test_one_field_changes_the_grid_of_model_and_data() -> None:
    family = FAMILIES[2]
    path = path_of(family, "t")
    config = load_config(path, dict(voxel_size=[0.8, 0.8, 0.8]))
    sizes = [config.model.pts_bbox_head.voxel_size]
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        sizes.append(loader.dataset.voxel_size)
    assert sizes == [[0.8] * 3] * 4
    with torch.device("meta"):
        head = MODELS.build(config.model.pts_bbox_head)
    assert head.grid_shape == (100, 100, 8)
    assert {densifier.grid_shape for densifier in head.densifiers} == {(100, 100, 8)}
    with pytest.raises(ConfigError, match="must agree; set voxel_size once"):
        load_config(path, {"model.pts_bbox_head.voxel_size": [0.8, 0.8, 0.8]})


def test_a_config_may_change_the_grid_of_its_base(tmp_path: Path) -> None:
    child = tmp_path / "finer.py"
    base = path_of(FAMILIES[7], "t")  # LiDAR voxels have a size of their own
    child.write_text(f"_base_ = {str(base)!r}\nvoxel_size = [0.4, 0.4, 0.4]\n")
    config = load_config(child)
    assert config.model.pts_bbox_head.voxel_size == [0.4] * 3
    assert config.test_dataloader.dataset.voxel_size == [0.4] * 3
    assert config.model.pts_voxel_layer.voxel_size == [0.064, 0.064, 0.2]
