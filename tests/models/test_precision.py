"""Precision of the head's matrix products, and mixed precision of a training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

import models.register  # noqa: F401
from models.decoder import FeatureMaps
from models.decoder.mixing import AdaptiveMixing
from models.ops import voxel_sets
from scripts.runtime.config import load_config
from scripts.runtime.finite_steps import Bfloat16OptimWrapper, FiniteOptimWrapper
from scripts.runtime.fit import fit_config
from scripts.runtime.launch import Launch
from tests.models.cases import (
    DETECTOR,
    HEAD,
    POINT_HEAD,
    make_batch,
    make_feats,
    make_geometry,
    make_sample,
    merge,
    with_lidar,
)

ROOT = Path(__file__).parents[2]
HEADS = dict(v1=POINT_HEAD, v2=HEAD)


def make_head(config: dict[str, Any], **changes: Any) -> Any:
    torch.manual_seed(0)
    head = MODELS.build(merge(config, **changes))
    for name, parameter in head.named_parameters():
        if name.endswith(("sampling_offset.weight", "parameter_generator.weight")):
            nn.init.normal_(parameter, std=0.05)  # they start at zero
    return head


@pytest.mark.parametrize("kind", HEADS)
def test_bfloat16_is_close_and_trains(kind: str) -> None:
    """Factors have 8 bits: points differ by centimetres, features by percents."""
    outputs = {}
    for precision in ("float32", "tf32", "bfloat16"):
        head = make_head(HEADS[kind], precision=precision).train()
        output = head(make_feats(2), make_geometry(2))
        assert all(points.dtype == torch.float32 for points in output.points)
        assert all(feats.dtype == torch.float32 for feats in output.point_feats)
        losses = head.loss(output, [make_sample(0), make_sample(1)])
        sum(losses.values()).backward()
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.dtype == torch.float32
        outputs[precision] = output
    exact, coarse = outputs["float32"], outputs["bfloat16"]
    assert torch.equal(outputs["tf32"].points[-1], exact.points[-1])  # only a GPU has it
    for own, other in zip(coarse.points, exact.points, strict=True):
        away = (own - other) * torch.tensor([16.0, 12.0, 3.2])  # metres
        assert 0 < away.abs().max() < 0.1
    for own, other in zip(coarse.point_feats, exact.point_feats, strict=True):
        assert 0 < (own - other).norm() / other.norm() < 0.05


def test_unknown_precision_is_named() -> None:
    with pytest.raises(ValueError, match="precision must be one of"):
        make_head(HEAD, precision="float8")


def test_all_groups_together_equal_one_after_another() -> None:
    mixing = AdaptiveMixing(embed_dims=8, num_groups=2, in_points=3, out_points=5).double()
    nn.init.normal_(mixing.parameter_generator.weight)
    sampled = torch.randn(2, 4, 2, 3, 4, dtype=torch.float64)
    query = torch.randn(2, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(mixing._mix_together(sampled, query), mixing(sampled, query))


def test_gathered_convolution_follows_autocast() -> None:
    steps = [voxel_sets.ConvStep((3, 3, 3), (1, 1, 1), (1, 1, 1))]
    chain = voxel_sets.voxel_chain(torch.tensor([3, 30, 31, 60]), 1, (5, 4, 4), steps)
    pairs = voxel_sets.voxel_neighbors(*chain.sets, steps[0])
    features, weight = torch.randn(4, 8), torch.randn(6, 3, 3, 3, 8, requires_grad=True)
    exact = voxel_sets.gathered_conv(features, weight, None, pairs)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = voxel_sets.gathered_conv(features, weight, None, pairs)
    assert coarse.dtype == torch.float32 and not torch.equal(coarse, exact)
    torch.testing.assert_close(coarse, exact, rtol=0.02, atol=0.1)
    (own,) = torch.autograd.grad(coarse.sum(), weight)
    (other,) = torch.autograd.grad(exact.sum(), weight)
    torch.testing.assert_close(own, other, rtol=0.02, atol=0.1)


@pytest.mark.parametrize(
    ("kind", "trains"), [("v1", True), ("v2", False), ("v2", True), ("v2_fusion", True)]
)
def test_decoder_compiles_in_one_graph(kind: str, trains: bool) -> None:
    """A graph break raises; the seeds of the dropout are inputs of the graph."""
    config = with_lidar(HEAD)["pts_bbox_head"] if kind == "v2_fusion" else HEADS[kind]
    decoder = make_head(config).transformer["decoder"].train(trains)
    for layer in decoder.decoder_layers:
        layer.self_attn.attention["attn"].dropout = layer.ffn.dropout = 0.3
    geometry = make_geometry(2)
    bev = torch.randn(2, 32, 15, 20) if decoder.use_lidar else None
    maps = FeatureMaps(
        tuple(make_feats(2)), geometry.occ2img(), geometry.img_hw, bev, decoder.pc_range
    )
    points = torch.rand(2, 10, 1, 3)
    torch._dynamo.reset()
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(decoder.decode, fullgraph=True, backend=count)
    for seed in range(2):
        seeds = torch.full((2, 3, 2), seed) if trains else None
        with torch.set_grad_enabled(trains):
            found, expected = compiled(points, maps, seeds), decoder.decode(points, maps, seeds)
        assert torch.equal(found.points[-1], expected.points[-1])
        assert torch.equal(found.point_feats[-1], expected.point_feats[-1])
    assert len(graphs) == 1


@torch.no_grad()
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_compiled_decoder_predicts_what_the_eager_one_does(kind: str) -> None:
    torch.manual_seed(0)
    model = MODELS.build(merge(DETECTOR, pts_bbox_head=HEADS[kind] | dict(score_thr=0.005))).eval()
    (expected,) = model.test_step(make_batch(0))
    torch._dynamo.reset()
    model.compile_decoder(backend="aot_eager", fullgraph=True)
    for tested in (model, copy.deepcopy(model)):
        (found,) = tested.test_step(make_batch(0))
        assert len(found.pred_coords) and torch.equal(found.pred_coords, expected.pred_coords)
        assert torch.equal(found.pred_labels, expected.pred_labels)
        torch.testing.assert_close(found.pred_scores, expected.pred_scores)


@pytest.mark.parametrize("kind", ["v1", "v2", "v2_fusion"])
def test_training_in_bfloat16_throughout(kind: str) -> None:
    """Losses are close to float32 with image network and head in bfloat16."""
    losses = []
    for precision, wrapper in (
        ("float32", FiniteOptimWrapper), ("bfloat16", Bfloat16OptimWrapper)
    ):  # fmt: skip
        torch.manual_seed(0)
        config = with_lidar(HEAD) if kind == "v2_fusion" else dict(pts_bbox_head=HEADS[kind])
        head = config["pts_bbox_head"] | dict(precision=precision)
        model = MODELS.build(merge(DETECTOR, **config | dict(pts_bbox_head=head))).train()
        optimizer = wrapper(torch.optim.AdamW(model.parameters(), lr=1e-3))
        torch.manual_seed(1)
        batch = make_batch(0, lidar=model.has_lidar)
        losses.append([model.train_step(batch, optimizer)["loss"].item() for _ in range(2)])
        assert not optimizer.skipped
        assert all(value.isfinite().all() for value in model.state_dict().values())
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


CONFIGS = sorted(path for path in (ROOT / "configs").glob("*/*.py") if path.parts[-2] != "_base_")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_bfloat16_is_an_option_of_every_config(path: Path) -> None:
    options = {
        "optim_wrapper.type": "AmpOptimWrapper",
        "optim_wrapper.dtype": "bfloat16",
        "precision": "bfloat16",
        "cuda_graphs": True,
    }
    config = load_config(path, options)
    assert config.model.pts_bbox_head.precision == "bfloat16"
    assert config.model.pts_bbox_head.decoder.cuda_graphs and config.model.cuda_graphs
    fit_config(config, Launch())
    assert config.optim_wrapper.type == "Bfloat16OptimWrapper"
    assert not {"dtype", "loss_scale"} & set(config.optim_wrapper)
