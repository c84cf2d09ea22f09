"""Every shipped OPUS-V2 config: effective values, parameters as published, a small forward run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from tests.models.cases import HW, camera_matrices, make_batch

ROOT = Path(__file__).parents[2]
NAME = "opusv2-{}_r50_704x256_8f_nusc-occ3d_100e"
# size: queries, points per query after each layer, sampling points (OPUS-V2's published variants)
VARIANTS = {
    "t": (600, [8, 16, 32, 64, 128], 4),
    "s": (1200, [4, 8, 16, 32, 64], 2),
    "m": (2400, [2, 4, 8, 16, 32], 2),
    "l": (4800, [1, 2, 4, 8, 16], 2),
}


def load(size: str) -> Config:
    return Config.fromfile(ROOT / "configs" / "opusv2_nusc-occ3d" / f"{NAME.format(size)}.py")


@pytest.mark.parametrize("size", VARIANTS)
def test_effective_values(size: str) -> None:
    config = load(size)
    model, head = config.model, config.model.pts_bbox_head
    queries, refines, points = VARIANTS[size]
    assert (head.num_query, head.decoder.num_refines, head.decoder.num_points) == (
        queries,
        refines,
        points,
    )
    assert head.pc_range == [-40, -40, -1, 40, 40, 5.4] and head.voxel_size == [0.4] * 3
    assert (head.num_classes, head.empty_label, head.num_frames, head.num_cams) == (17, 17, 8, 6)
    assert (head.embed_dims, head.num_levels, head.score_thr) == (256, 4, 0.25)
    assert head.loss_cls.class_weights == [
        10, 5, 10, 5, 5, 10, 10, 5, 10, 5, 5, 1, 5, 1, 1, 2, 1,
    ]  # fmt: skip
    assert (head.loss_pts.beta, head.loss_pts.loss_weight, head.loss_pts.density_aware) == (
        0.2,
        0.5,
        False,
    )
    assert (head.loss_cls.gamma, head.loss_cls.alpha, head.loss_cls.loss_weight) == (2.0, 0.25, 2.0)
    backbone = model.img_backbone
    assert (backbone.depth, backbone.frozen_stages, backbone.norm_eval, backbone.with_cp) == (
        50,
        1,
        True,
        True,
    )
    assert backbone.init_cfg.prefix == "backbone."
    assert model.grid_mask is None and model.stop_prev_grad is None
    assert len(config.class_names) == head.num_classes
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        dataset = loader.dataset
        assert dataset.num_frames == head.num_frames
        assert list(dataset.pc_range) == list(head.pc_range)
        assert list(dataset.voxel_size) == list(head.voxel_size)


@pytest.mark.parametrize("size", VARIANTS)
def test_state_dict_is_the_published_one(size: str) -> None:
    with torch.device("meta"):
        model = MODELS.build(load(size).model)
    path = ROOT / "tests" / "golden" / f"{NAME.format(size)}.json.gz"
    published = json.loads(gzip.decompress(path.read_bytes()))
    ours = {
        name: [list(value.shape), str(value.dtype).removeprefix("torch.")]
        for name, value in model.state_dict().items()
    }
    assert ours == published


def shrink(config: Config) -> dict[str, Any]:
    """Return the model of a config with few queries and frames, to run on a CPU."""
    model = config.model
    model.img_backbone.init_cfg = None
    model.pts_bbox_head.update(num_query=8, num_frames=1)
    model.pts_bbox_head.decoder.num_refines = [
        min(points, 8) for points in model.pts_bbox_head.decoder.num_refines
    ]
    return model


@pytest.mark.parametrize("size", VARIANTS)
def test_small_forward_run(size: str) -> None:
    model = MODELS.build(shrink(load(size))).train()
    batch = make_batch(0, num_frames=1)
    sample = batch["data_samples"][0]
    sample.ego2img = camera_matrices(1)
    sample.set_data(dict(voxel_semantics=torch.full((200, 200, 16), 17, dtype=torch.uint8)))
    sample.voxel_semantics[100:110, 90:110, 2] = 11
    sample.set_data(dict(mask_camera=torch.ones(200, 200, 16, dtype=torch.bool)))
    data = model.data_preprocessor(batch, training=True)
    assert data["inputs"]["img"].shape == (1, 6, 3, *HW)
    losses = model(**data, mode="loss")
    assert len(losses) == 1 + 2 * 5
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
