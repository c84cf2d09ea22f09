"""Models with a LiDAR branch: V1-Fusion and V2-Fusion differ only in the head's configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper

from models import ops
from models.heads import LidarInput
from tests.models.cases import (
    HEAD,
    LIDAR_BRANCH,
    POINT_HEAD,
    make_batch,
    make_feats,
    make_geometry,
    make_points,
    make_sample,
    merge,
    with_lidar,
)

HEADS = dict(v1=POINT_HEAD, v2=HEAD)


def run(model: Any, batch: dict[str, Any], mode: str) -> Any:
    return model(**model.data_preprocessor(batch, model.training), mode=mode)


@pytest.mark.parametrize("kind", HEADS)
def test_train_step_moves_all_but_what_is_frozen(
    kind: str, make_detector: Callable[..., Any]
) -> None:
    model = make_detector(**with_lidar(HEADS[kind])).train()
    for name, parameter in model.named_parameters():
        if name.endswith(
            ("sampling_offset.weight", "parameter_generator.weight", "gen_tau.weight")
        ):
            torch.nn.init.normal_(parameter, std=0.01)  # initialised with zero
    losses = run(model, make_batch(0, 1, lidar=True), "loss")
    # no location loss for the initial points, which are not learned
    assert set(losses) == {"loss_cls", "loss_pts", "d0.loss_cls", "d0.loss_pts"}
    before = {name: value.clone() for name, value in model.named_parameters()}
    assert "pts_bbox_head.init_points.weight" not in before
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0))
    model.train_step(make_batch(0, 1, lidar=True), optimizer)
    frozen = ("img_backbone.conv1.", "img_backbone.bn1.", "img_backbone.layer1.")
    for name, value in model.named_parameters():
        # the first layer has a point a query: V1's sampling points all lie in it
        rigid = kind == "v1" and ".0.sampling.sampling_offset" in name
        stays = name.startswith(frozen) or rigid
        assert torch.equal(value, before[name]) == stays, name


@pytest.mark.parametrize("kind", HEADS)
def test_batch_of_two_equals_two_batches_of_one(
    kind: str, make_detector: Callable[..., Any]
) -> None:
    model = make_detector(**with_lidar(merge(HEADS[kind], score_thr=0.009))).double().eval()

    def predict(*seeds: int) -> Any:
        batch = make_batch(*seeds, lidar=True)
        inputs = dict(batch["inputs"], points=[p.double() for p in batch["inputs"]["points"]])
        with torch.no_grad():
            return run(model, dict(batch, inputs=inputs), "predict")

    for alone, together in zip((*predict(0), *predict(1)), predict(0, 1), strict=True):
        assert len(alone.pred_coords) > 0
        a, b = (torch.argsort(_key(s.pred_coords)) for s in (alone, together))
        assert torch.equal(alone.pred_coords[a], together.pred_coords[b])
        assert torch.equal(alone.pred_labels[a], together.pred_labels[b])
        torch.testing.assert_close(alone.pred_scores[a], together.pred_scores[b])


def _key(coords: torch.Tensor) -> torch.Tensor:
    return (coords * torch.tensor([10000, 100, 1])).sum(1)


def make_lidar_head(make_head: Callable[..., Any]) -> Any:
    return make_head(base=with_lidar(HEAD)["pts_bbox_head"])


def test_queries_start_at_farthest_points_of_the_current_sweep(
    make_head: Callable[..., Any],
) -> None:
    head = make_lidar_head(make_head)
    clouds = [make_points(0), make_points(1)[3:]]
    start = head._initial_points(2, LidarInput(clouds, torch.zeros(2, 32, 4, 4)))
    assert start.shape == (2, 10, 1, 3)
    for cloud, points in zip(clouds, head.denormalise(start)[:, :, 0], strict=True):
        current = cloud[cloud[:, 4] == 0, :3]
        torch.testing.assert_close(points[0], current[0])
        expected = current[ops.farthest_point_sampling(current, 10)]
        torch.testing.assert_close(points, expected)
    # with fewer points than queries points repeat
    few = head._initial_points(1, LidarInput([make_points(0)[:3]], torch.zeros(1, 32, 4, 4)))
    assert len(few[0, :, 0].unique(dim=0)) == 3


def test_empty_sweep_leaves_it_to_the_cameras(make_head: Callable[..., Any]) -> None:
    head = make_lidar_head(make_head).train()
    older = make_points(0)
    older[:, 4] = 0.05
    lidar = LidarInput([older], torch.zeros(1, 32, 4, 4))
    output = head(make_feats(1), make_geometry(1), lidar)
    start = output.init_points[0, :, 0]
    assert ((start > 0) & (start < 1)).all()
    assert torch.cdist(start, start).fill_diagonal_(1).min() > 0.1
    sum(head.loss(output, [make_sample(0)]).values()).backward()


@pytest.mark.parametrize("points", [0, 1, 2])
def test_training_survives_a_lidar_that_sees_nothing(
    points: int, make_detector: Callable[..., Any]
) -> None:
    model = make_detector(**with_lidar(HEAD)).train()
    batch = make_batch(0, lidar=True)
    batch["inputs"]["points"] = [make_points(0)[:points]]
    sum(run(model, batch, "loss").values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(b.isfinite().all() for b in model.buffers() if b.is_floating_point())


def test_mixed_precision_leaves_sparse_convolutions_and_head_alone(
    make_detector: Callable[..., Any],
) -> None:
    model = make_detector(**with_lidar(HEAD)).train()
    seen: dict[str, bool] = {}

    def note(part: str) -> Callable[..., None]:
        return lambda *_: seen.update({part: torch.is_autocast_enabled("cpu")})

    parts = dict(
        sparse=model.pts_middle_encoder.conv_input[0],
        dense=model.pts_backbone,
        neck=model.pts_neck,
        final=model.final_conv,
        head=model.pts_bbox_head,
    )
    for name, part in parts.items():
        part.register_forward_pre_hook(note(name))
    data = model.data_preprocessor(make_batch(0, lidar=True), True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(**data, mode="loss")
    assert seen == dict(sparse=False, dense=True, neck=True, final=True, head=False)
    assert all(value.dtype == torch.float32 for value in losses.values())


def test_lidar_changes_the_result(make_detector: Callable[..., Any]) -> None:
    """Older sweeps also change it: they are in the map, but not among the queries."""
    model = make_detector(**with_lidar(HEAD)).eval()
    batch = make_batch(0, lidar=True)
    with torch.no_grad():
        plain = run(model, batch, "tensor").points[-1]
        points = batch["inputs"]["points"][0]
        batch["inputs"]["points"][0] = points[points[:, 4] == 0]
        assert not torch.allclose(run(model, batch, "tensor").points[-1], plain)


def test_inconsistent_configurations_are_refused(make_detector: Callable[..., Any]) -> None:
    changes = with_lidar(HEAD)
    with pytest.raises(ValueError, match="needs pts_neck as well: configure all"):
        make_detector(**changes | dict(pts_neck=None))
    with pytest.raises(ValueError, match="use_lidar is False in a model with a LiDAR branch"):
        make_detector(**changes | dict(pts_bbox_head=HEAD))
    with pytest.raises(ValueError, match="use_lidar is True in a model without a LiDAR branch"):
        make_detector(pts_bbox_head=changes["pts_bbox_head"])
    encoder = merge(LIDAR_BRANCH["pts_middle_encoder"], sparse_shape=[9, 80, 60])
    with pytest.raises(ValueError, match=r"require \[9, 60, 80\] \(z \+ 1, y, x\)"):
        make_detector(**changes | dict(pts_middle_encoder=encoder))
    model = make_detector(**changes)
    with pytest.raises(ValueError, match="and the batch no points: use a data set that loads"):
        run(model, make_batch(0), "loss")


@pytest.mark.parametrize("kind", HEADS)
def test_sampling_points_are_returned(kind: str, make_detector: Callable[..., Any]) -> None:
    model = make_detector(**with_lidar(HEADS[kind])).eval()
    with torch.no_grad():
        output = run(model, make_batch(0, lidar=True), "tensor")
    head = model.pts_bbox_head
    first = head.transformer["decoder"].decoder_layers[0].sampling
    assert len(output.sampling_points) == len(output.points)
    # Queries start at LiDAR points; the offsets' weights are initialised with zero.
    expected = head.denormalise(output.init_points)
    if kind == "v2":
        offset = first.sampling_offset.bias.view(-1, 3)
        expected = expected + first.sampling_prototype.weight + offset
    found = output.sampling_points[0].flatten(2, 3)
    torch.testing.assert_close(found, expected.expand_as(found))
