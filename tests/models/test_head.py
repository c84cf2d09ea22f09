"""Head and discretization: batches, borders, empty and broken inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models.decoder import FeatureMaps
from models.heads import CameraGeometry, CPDDensifier, HeadOutput, VoxelLogits
from tests.models.cases import (
    GRID,
    HEAD,
    HW,
    NUM_CLASSES,
    PC_RANGE,
    POINT_HEAD,
    VOXEL_SIZE,
    camera_matrices,
    make_feats,
    make_geometry,
    make_sample,
)


def make_densifier(**changes: Any) -> CPDDensifier:
    config = dict(
        pc_range=PC_RANGE,
        voxel_size=VOXEL_SIZE,
        num_classes=3,
        point_channels=4,
        pfn_channels=[8, 6],
    )
    return CPDDensifier(**(config | changes)).double()


def by_voxel(voxels: VoxelLogits) -> dict[tuple[int, ...], torch.Tensor]:
    return dict(zip(map(tuple, voxels.coords.tolist()), voxels.logits, strict=True))


def test_densifier_equals_a_loop_over_voxels() -> None:
    densifier = make_densifier().eval()
    for layer in densifier.pfn_layers:
        torch.nn.init.normal_(layer.norm.running_mean)
        for scale in (layer.norm.running_var, layer.norm.weight):
            torch.nn.init.uniform_(scale, 0.5, 2.0)
        torch.nn.init.normal_(layer.norm.bias)
    points = torch.rand(2, 5, 3, 3, dtype=torch.float64) * torch.tensor([6.0, 6.0, 1.5])
    feats = torch.randn(2, 5, 3, 4, dtype=torch.float64)

    low, size = torch.tensor(PC_RANGE[:3]).double(), 0.8
    voxel_feats: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for b in range(2):
        for q in range(5):
            for r in range(3):
                p = points[b, q, r]
                index = ((p - low) / size).floor()
                centre = low + (index + 0.5) * size
                x = torch.cat([p - centre, p - points[b, q].mean(0), feats[b, q, r]])
                voxel_feats.setdefault((b, *index.long().tolist()), []).append(x)
    first, second = densifier.pfn_layers
    dense = torch.zeros(2, *GRID, 6, dtype=torch.float64)
    for voxel, rows in voxel_feats.items():
        x = first.norm(first.linear(torch.stack(rows))).relu()
        x = torch.cat([x, x.max(0).values.expand_as(x)], dim=1)
        dense[voxel] = second.norm(second.linear(x)).relu().max(0).values
    dilate, _, classify = densifier.cls_branch

    def conv(x: torch.Tensor, module: Any) -> torch.Tensor:
        weight = module.weight.permute(0, 4, 1, 2, 3)
        return F.conv3d(x.permute(0, 4, 1, 2, 3), weight, module.bias, padding=1).movedim(1, -1)

    occupied = torch.zeros(2, 1, *GRID)
    for voxel in voxel_feats:
        occupied[voxel[0], 0, voxel[1], voxel[2], voxel[3]] = 1
    active = F.max_pool3d(occupied, 3, stride=1, padding=1)[:, 0].bool()
    hidden = conv(dense, dilate).relu() * active.unsqueeze(-1)
    logits = conv(hidden, classify)

    found = by_voxel(densifier(points, feats))
    assert set(found) == set(map(tuple, active.nonzero().tolist()))
    for voxel, value in found.items():
        torch.testing.assert_close(value, logits[voxel])


def test_training_equals_evaluation_with_the_statistics_of_the_batch() -> None:
    densifier = make_densifier(bn_momentum=1.0)
    points = torch.rand(2, 5, 3, 3, dtype=torch.float64) * torch.tensor([6.0, 6.0, 1.5])
    feats = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    expected = densifier(points, feats).logits
    for layer in densifier.pfn_layers:
        layer.norm.running_var *= 29 / 30  # of 30 points: a batch is divided by its biased variance
    torch.testing.assert_close(densifier.eval()(points, feats).logits, expected)


def test_points_outside_the_range_count_for_the_nearest_voxel() -> None:
    densifier = make_densifier().eval()
    points = torch.tensor([[[[-1e30, 5.0, 0.0]], [[1e30, -100.0, 50.0]]]], dtype=torch.float64)
    index = densifier._voxel_index(points)
    assert index.view(2, 3).tolist() == [[0, 13, 1], [19, 0, 3]]


def test_gradient_flows_through_points_and_features() -> None:
    densifier = make_densifier()
    points = torch.rand(1, 5, 3, 3, dtype=torch.float64).requires_grad_()
    feats = torch.randn(1, 5, 3, 4, dtype=torch.float64).requires_grad_()
    densifier(points, feats).logits.square().sum().backward()
    assert points.grad is not None and points.grad.any()
    assert feats.grad is not None and feats.grad.any()


def test_first_logits_are_the_prior() -> None:
    densifier = make_densifier(prior_probability=0.01)
    torch.nn.init.zeros_(densifier.cls_branch[2].weight)
    logits = densifier(torch.zeros(1, 2, 2, 3).double(), torch.zeros(1, 2, 2, 4).double()).logits
    torch.testing.assert_close(logits, torch.full_like(logits, -math.log(99)))


def test_batch_of_two_equals_two_batches_of_one(make_head: Callable[..., Any]) -> None:
    head = make_head(score_thr=0.01).double().eval()
    feats = make_feats(2, dtype=torch.float64)
    with torch.no_grad():
        both = head(feats, make_geometry(2, torch.float64))
        predictions = head.predict(both, [make_sample(0), make_sample(1)])
        for i in range(2):
            one = head([level[i : i + 1] for level in feats], make_geometry(1, torch.float64))
            for a, b in zip(one.points, both.points, strict=True):
                torch.testing.assert_close(a[0], b[i])
            (alone,) = head.predict(one, [make_sample(i)])
            expected = dict(
                zip(map(tuple, alone.pred_coords.tolist()), alone.pred_scores, strict=True)
            )
            mine = predictions[i]
            assert len(mine.pred_coords) == len(alone.pred_coords) > 0
            for coord, score in zip(mine.pred_coords.tolist(), mine.pred_scores, strict=True):
                torch.testing.assert_close(score, expected[tuple(coord)])


def test_losses_of_equal_samples_do_not_depend_on_the_batch(make_head: Callable[..., Any]) -> None:
    head = make_head().double().train()
    feats = make_feats(1, dtype=torch.float64)
    samples = [make_sample(0), make_sample(0)]
    one = head.loss(head(feats, make_geometry(1, torch.float64)), samples[:1])
    doubled = [torch.cat([level, level]) for level in feats]
    two = head.loss(head(doubled, make_geometry(2, torch.float64)), samples)
    assert list(two) == ["init_loss_pts", "loss_cls", "loss_pts", "d0.loss_cls", "d0.loss_pts"]
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)


def test_eval_mode_discretizes_the_last_layer_alone(make_head: Callable[..., Any]) -> None:
    head = make_head().eval()
    output = head(make_feats(1), make_geometry(1))
    assert output.point_feats[0] is None and output.voxels[0] is None
    assert output.points[0].shape == (1, 10, 2, 3) and output.points[1].shape == (1, 10, 4, 3)
    assert output.point_feats[1] is not None and output.point_feats[1].shape == (1, 10, 4, 4)
    assert output.voxels[1] is not None


def losses_of(head: Any, *samples: Any) -> dict[str, torch.Tensor]:
    output = head.train()(make_feats(len(samples)), make_geometry(len(samples)))
    losses: dict[str, torch.Tensor] = head.loss(output, samples)
    return losses


def test_every_parameter_gets_gradient(make_head: Callable[..., Any]) -> None:
    head = make_head()
    torch.nn.init.normal_(head.transformer["decoder"].decoder_layers[0].self_attn.gen_tau.weight)
    sum(losses_of(head, make_sample(0)).values()).backward()
    without = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_empty_ground_truth_trains(make_head: Callable[..., Any]) -> None:
    head = make_head()
    losses = losses_of(head, make_sample(0, occupied=0.0))
    assert losses["loss_pts"] == 0 and losses["init_loss_pts"] == 0
    assert 0 < losses["loss_cls"] < 1
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name  # distributed training needs every gradient
        assert parameter.grad.isfinite().all(), name


def test_single_occupied_voxel_and_no_camera_mask(make_head: Callable[..., Any]) -> None:
    sample = make_sample(0, occupied=0.0)
    sample.voxel_semantics[3, 2, 1] = 2
    del sample.mask_camera
    head = make_head()
    (target,) = head.occupied_points(sample.voxel_semantics[None], [sample])
    torch.testing.assert_close(target.points, torch.tensor([[-5.2, -4.0, 0.2]]))
    assert target.labels.tolist() == [2] and target.visible.tolist() == [True]
    total = sum(losses_of(head, sample).values())
    total.backward()
    assert total.isfinite()


def test_class_loss_by_hand(make_head: Callable[..., Any]) -> None:
    head = make_head()
    sample = make_sample(0, occupied=0.0)
    sample.voxel_semantics[1, 1, 1] = 2
    coords = torch.tensor([[0, 1, 1, 1], [0, 2, 1, 1], [0, 3, 1, 1]])
    voxels = VoxelLogits(coords, torch.zeros(3, NUM_CLASSES))
    point = torch.zeros(1, 1, 1, 3)
    losses = head.loss(HeadOutput(point, [point], [point], [voxels]), [sample])
    # p = 0.5 everywhere; class weights 1 ... 5; class 2 (weight 3) is positive in one of 3 voxels
    negative, positive = 0.75 * 0.25 * math.log(2), 0.25 * 0.25 * math.log(2)
    expected = 2.0 * ((3 * 15 - 3) * negative + 3 * positive) / 1
    assert losses["loss_cls"].item() == pytest.approx(expected, rel=1e-5)


def test_nan_features_do_not_spread(make_head: Callable[..., Any]) -> None:
    head = make_head().eval()
    feats = make_feats(1)
    feats[0][:] = float("nan")
    output = head(feats, make_geometry(1))
    assert all(points.isfinite().all() for points in output.points)
    assert output.voxels[-1].logits.isfinite().all()
    (sample,) = head.predict(output, [make_sample(0)])
    assert sample.pred_scores.isfinite().all()


def test_prediction_keeps_voxels_above_the_threshold(make_head: Callable[..., Any]) -> None:
    head = make_head(score_thr=0.25)
    logits = torch.full((4, NUM_CLASSES), -5.0)
    logits[0, 3] = logits[2, 1] = logits[3, 0] = 2.0
    logits[1, 0] = math.log(0.25 / 0.75) - 1e-3  # just below
    coords = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0], [2, 4, 5, 1], [2, 19, 14, 3]])
    output = HeadOutput(torch.zeros(3, 1, 1, 3), [], [], [VoxelLogits(coords, logits)])
    samples = head.predict(output, [make_sample(i) for i in range(3)])
    assert samples[0].pred_coords.tolist() == [[1, 2, 3]] and samples[0].pred_labels.tolist() == [3]
    assert samples[1].pred_coords.shape == (0, 3) and samples[1].pred_labels.shape == (0,)
    assert samples[2].pred_coords.tolist() == [[4, 5, 1], [19, 14, 3]]
    assert samples[2].pred_labels.tolist() == [1, 0]
    torch.testing.assert_close(samples[0].pred_scores, torch.tensor([2.0]).sigmoid())


def test_half_precision_features_are_decoded_in_single(make_head: Callable[..., Any]) -> None:
    head = make_head().eval()
    feats = [level.bfloat16() for level in make_feats(1)]
    output = head(feats, make_geometry(1))
    expected = head([level.float() for level in feats], make_geometry(1))
    assert output.points[-1].dtype == torch.float32
    assert torch.equal(output.points[-1], expected.points[-1])


def test_caller_keeps_its_list_of_features(make_head: Callable[..., Any]) -> None:
    feats = make_feats(1)
    before = [level.clone() for level in feats]
    make_head().eval()(feats, make_geometry(1))
    assert all(torch.equal(a, b) for a, b in zip(feats, before, strict=True))


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_bev_augmentation_moves_the_prediction(angle: float, make_head: Callable[..., Any]) -> None:
    """Points in a moved occ frame sample the same pixels, because `ego2occ` is applied.

    The frame is flipped, then rotated and scaled.
    """
    head = make_head().double().eval()
    sampling = head.transformer["decoder"].decoder_layers[0].sampling
    feats = make_feats(1, dtype=torch.float64)
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    cos, sin = 1.1 * math.cos(angle), 1.1 * math.sin(angle)
    turn = torch.eye(4, dtype=torch.float64)
    if angle:
        turn[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
        turn[:2, 3] = torch.tensor([0.4, -0.3])
    move = turn @ flip
    flipped = CameraGeometry(make_geometry(1, torch.float64).ego2img, move.unsqueeze(0), HW)
    points = torch.tensor([4.0, 1.0, 0.5], dtype=torch.float64).view(1, 1, 1, 3)
    query = torch.randn(1, 1, 32, dtype=torch.float64)
    linear, shift = move[:3, :3], move[:3, 3]
    maps = FeatureMaps(feats, make_geometry(1, torch.float64).occ2img(), HW)
    plain, _ = sampling(query, points, maps)
    with torch.no_grad():  # mirror the placement of the points too
        for offsets in (sampling.sampling_prototype.weight, sampling.sampling_offset.bias):
            offsets.copy_((offsets.view(-1, 3) @ linear.T).view_as(offsets))
    maps = FeatureMaps(feats, flipped.occ2img(), HW)
    mirrored, _ = sampling(query, points @ linear.T + shift, maps)
    assert plain.any()
    torch.testing.assert_close(mirrored, plain)


@pytest.mark.parametrize("base", [HEAD, POINT_HEAD], ids=["v2", "v1"])
def test_sampling_points_are_returned(base: dict[str, Any], make_head: Callable[..., Any]) -> None:
    """They equal the formulas of V1 and V2, applied to the points of the previous layer."""
    head = make_head(base=base).train()
    output = head(make_feats(2), make_geometry(2))
    layers = head.transformer["decoder"].decoder_layers
    assert len(output.sampling_points) == len(layers) > 1
    before = [output.init_points, *output.points]
    for layer, points, found in zip(layers, before, output.sampling_points, strict=False):
        assert not found.requires_grad
        points_m = head.denormalise(points.detach())
        single = points.shape[2] == 1
        offset = layer.sampling.sampling_offset.bias.view(-1, 3)  # its weight starts at zero
        if base is HEAD:
            scale = 1.0 if single else points_m.std(2, keepdim=True)
            expected = layer.sampling.sampling_prototype.weight * scale + offset
        else:
            expected = offset * (0.0 if single else points_m.std(2, keepdim=True))
        expected = points_m.mean(2, keepdim=True) + expected
        assert found.shape == (2, head.num_query, *found.shape[2:4], 3)
        torch.testing.assert_close(found.flatten(2, 3), expected.expand_as(found.flatten(2, 3)))


def test_wrong_sizes_are_named(make_head: Callable[..., Any]) -> None:
    head = make_head().eval()
    with pytest.raises(ValueError, match="num_levels=3, the image network gives 2 feature maps"):
        head(make_feats(1)[:2], make_geometry(1))
    with pytest.raises(ValueError, match=r"num_frames=2 and num_cams=6; got \[1, 6, 32\] with 6"):
        head(
            [level[:, :6] for level in make_feats(1)],
            CameraGeometry(camera_matrices()[None, :6], torch.eye(4)[None], HW),
        )
    sample = make_sample(0)
    sample.set_data(dict(voxel_semantics=torch.zeros(4, 4, 4, dtype=torch.uint8)))
    with pytest.raises(ValueError, match=r"has the shape \(4, 4, 4\), the model predicts"):
        head.loss_terms(head.train()(make_feats(1), make_geometry(1)), [sample])
