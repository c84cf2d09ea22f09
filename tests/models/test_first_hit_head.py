"""Auxiliary supervision of the image network: targets against hand-made scenes and small steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from models.errors import ModelConfigError
from models.heads import CameraGeometry, FirstHitHead
from models.heads.query_memory import farthest_first
from models.heads.seen_surfaces import ExtraPoints, SeenSurfaces, SurfaceFeatures
from tests.models.cases import HEAD, make_batch, make_feats, make_geometry

FREE, CLASSES = 17, 17
IMG_HW = (24, 40)


def make_head(**changes: Any) -> FirstHitHead:
    return FirstHitHead(
        in_channels=8,
        num_classes=CLASSES,
        empty_label=FREE,
        pc_range=(-8.0, -8.0, -1.0, 8.0, 8.0, 5.4),
        voxel_size=(0.4, 0.4, 0.4),
        **changes,
    )


def empty_grid() -> Tensor:
    return torch.full((40, 40, 16), FREE, dtype=torch.uint8)


def forward_camera(turn: float = 0.0) -> Tensor:
    """Return a camera at (0, 0, 1) m that looks along x, turned left by `turn` radians."""
    cos, sin = math.cos(turn), math.sin(turn)
    rotation = torch.tensor([[sin, -cos, 0.0], [0.0, 0.0, -1.0], [cos, sin, 0.0]])
    intrinsic = torch.tensor([[20.0, 0.0, 20.0], [0.0, 20.0, 12.0], [0.0, 0.0, 1.0]])
    matrix = torch.eye(4)
    matrix[:3, :3] = intrinsic @ rotation
    matrix[:3, 3] = matrix[:3, :3] @ torch.tensor([0.0, 0.0, -1.0])
    return matrix


def test_a_wall_ahead_has_its_class_and_depth() -> None:
    head = make_head(depth_bins=8, depth_range_m=(1.0, 16.0))
    grid = empty_grid()
    grid[30] = 15  # x from 4.0 to 4.4 m, over the whole width and height
    classes, bins = head.targets(grid, forward_camera()[None], IMG_HW, (3, 5))
    # The middle cell looks straight ahead: 4 m is the logarithmic middle of 1 and 16 m.
    assert classes[0, 1, 2] == 15 and bins[0, 1, 2] == 4
    # The next cell is 8 px aside at 20 px focal length: its ray is longer by 8 %.
    assert bins[0, 1, 1] == int(8 * math.log(4 * math.hypot(1, 0.4)) / math.log(16))
    assert (classes == 15).all()
    behind, _ = head.targets(grid, forward_camera(math.pi)[None], IMG_HW, (3, 5))
    assert (behind == CLASSES).all()


def test_a_voxel_appears_where_it_projects_to() -> None:
    rng = np.random.default_rng(0)
    head = make_head()
    for _ in range(20):
        cell = rng.integers((28, 14, 1), (38, 26, 6))
        grid = empty_grid()
        grid[tuple(cell)] = int(rng.integers(CLASSES))
        camera = forward_camera(float(rng.uniform(-0.3, 0.3)))
        centre = torch.tensor([*(cell + 0.5) * 0.4 + (-8.0, -8.0, -1.0), 1.0]).float()
        u, v, depth, _ = camera @ centre
        column, row = int(u / depth), int(v / depth)  # a map as large as the image
        if not (0 <= column < IMG_HW[1] and 0 <= row < IMG_HW[0]):
            continue
        classes, _ = head.targets(grid, camera[None], IMG_HW, IMG_HW)
        assert classes[0, row, column] == grid[tuple(cell)]
        assert (classes != CLASSES).sum() < 100


def test_losses_by_hand_and_gradient_to_the_maps() -> None:
    torch.manual_seed(0)
    head = make_head(loss_weight=0.5)
    torch.nn.init.zeros_(head.predictor.weight)
    torch.nn.init.zeros_(head.predictor.bias)
    grid = empty_grid()
    grid[30] = 15
    sample = BaseDataElement(voxel_semantics=grid)
    cameras = torch.stack([forward_camera(), forward_camera(math.pi)] * 2)[None]
    geometry = CameraGeometry(ego2img=cameras, ego2occ=torch.eye(4)[None], img_hw=IMG_HW)
    maps = [torch.randn(1, 4, 8, 6, 10), torch.randn(1, 4, 8, 3, 5)]
    losses = head.loss(maps, geometry, [sample], num_cams=2)
    assert losses["img.loss_cls"].item() == pytest.approx(0.5 * math.log(CLASSES + 1), rel=1e-5)
    assert losses["img.loss_depth"].item() == pytest.approx(0.5 * math.log(16), rel=1e-5)
    torch.nn.init.normal_(head.predictor.weight)
    maps = [level.requires_grad_() for level in maps]
    sum(head.loss(maps, geometry, [sample], num_cams=2).values()).backward()
    for level in maps:
        assert level.grad is not None and level.grad[:, :2].abs().sum() > 0
        assert (level.grad[:, 2:] == 0).all()  # cameras of the frame before
    nothing = BaseDataElement(voxel_semantics=empty_grid())
    losses = head.loss(maps, geometry, [nothing], num_cams=2)
    assert losses["img.loss_depth"] == 0 and losses["img.loss_cls"].isfinite()


def test_in_a_detector_it_acts_in_training_alone(make_detector: Callable[..., Any]) -> None:
    model = make_detector(img_aux_head=dict(type="FirstHitHead"))
    batch = make_batch(0)
    losses = model.train()(**model.data_preprocessor(batch, True), mode="loss")
    assert {"img.loss_cls", "img.loss_depth"} < set(losses)
    sum(losses.values()).backward()
    assert model.img_aux_head.predictor.weight.grad.abs().sum() > 0
    names = {name for name in model.state_dict() if name.startswith("img_aux_head.")}
    assert names == {"img_aux_head.predictor.weight", "img_aux_head.predictor.bias"}
    assert make_detector().img_aux_head is None


def one_hot_predictor(head: FirstHitHead) -> None:
    """Make channel 0 the class 15, 1 nothing, and 2 + d the depth bin d."""
    torch.nn.init.zeros_(head.predictor.weight)
    torch.nn.init.zeros_(head.predictor.bias)
    with torch.no_grad():
        head.predictor.weight[15, 0] = head.predictor.weight[CLASSES, 1] = 1
        for d in range(6):
            head.predictor.weight[CLASSES + 1 + d, 2 + d] = 1


def test_seen_surfaces_are_where_the_rays_of_pixels_end() -> None:
    head = make_head(depth_bins=8, depth_range_m=(1.0, 16.0))
    h, w = 3, 5
    one_hot_predictor(head)
    feats = torch.zeros(1, 4, 8, h, w)  # two frames of two cameras; the older one is not used
    feats[0, :, 1] = 1
    # Equal logits of bins 4 and 5 mean 4.5; a logit of bin 1 far above the others means 1.
    pixels = ((0, 1, 2, {4: 50.0, 5: 50.0}, 4.5), (1, 0, 3, {1: 50.0}, 1.0))
    for camera, v, u, bins, _ in (*pixels, (2, 0, 0, {1: 50.0}, 1.0)):
        feats[0, camera, :2, v, u] = torch.tensor([1.0, 0.0])
        for depth_bin, logit in bins.items():
            feats[0, camera, 2 + depth_bin, v, u] = logit
    feats[0, 0, 2, 1, 2] = 49.0  # a second mode, of bin 0, does not count
    cameras = torch.stack([forward_camera(turn) for turn in (0.0, 2.0, 0.0, 0.0)])
    shift = torch.eye(4)
    shift[:3, 3] = torch.tensor([0.5, 0.2, 0.0])
    geometry = CameraGeometry(cameras[None].double(), shift[None].double(), IMG_HW)
    feats.requires_grad_()
    (seen,) = head.seen_surfaces(feats[:, :2], geometry.occ2img()[:, :2], IMG_HW)
    assert seen.points.shape == (2 * h * w, 3) and not seen.points.requires_grad
    assert seen.exists.sum() == 2
    for camera, v, u, _, mean_bin in pixels:
        i = (camera * h + v) * w + u
        assert seen.exists[i]
        torch.testing.assert_close(seen.feats[i], feats[0, camera, :, v, u])
        logits = head.predictor.weight[: CLASSES + 1, :, 0, 0] @ feats[0, camera, :, v, u]
        torch.testing.assert_close(seen.class_shares[i], logits.softmax(0).detach())
        point = seen.points[i]
        pixel = cameras[camera].double() @ torch.cat([point - shift[:3, 3], point.new_ones(1)])
        assert (pixel[:2] / pixel[2]).tolist() == pytest.approx([8 * u + 4, 8 * v + 4])
        origin = torch.tensor([0.5, 0.2, 1.0], dtype=torch.float64)
        distance = float((point - origin).norm())
        assert distance == pytest.approx(16 ** ((mean_bin + 0.5) / 8), rel=1e-5)
    seen.feats[seen.exists].sum().backward()
    assert feats.grad is not None and feats.grad.sum() == 2 * 8


def draw_surfaces(head: Any, points: Tensor) -> SeenSurfaces:
    feats = torch.randn(len(points), head.embed_dims)
    shares = torch.randn(len(points), 6).softmax(1)
    return SeenSurfaces(points.double(), feats, shares, torch.arange(len(points)) != 2)


def test_features_of_a_surface_by_hand() -> None:
    layer = SurfaceFeatures(in_channels=4, num_classes=2, out_channels=3)
    torch.nn.init.constant_(layer.of_pixel.bias, 0.5)
    seen = SeenSurfaces(
        torch.zeros(2, 3), torch.tensor([[1.0, 3.0, 1.0, 3.0], [0.0, 0.0, 2.0, 2.0]]),
        torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.25, 0.75]]), torch.ones(2, dtype=torch.bool),
    )  # fmt: skip
    weight, classes = layer.of_pixel.weight, layer.of_class
    first = 0.5 - weight[:, 0] + weight[:, 1] - weight[:, 2] + weight[:, 3] + classes[:, 0]
    second = 0.5 - weight[:, 0] - weight[:, 1] + weight[:, 2] + weight[:, 3]
    second = second + 0.25 * classes[:, 1] + 0.75 * classes[:, 2]
    torch.testing.assert_close(layer(seen), torch.stack([first, second]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", [9, 3])
def test_queries_start_on_seen_surfaces(make_detector: Callable[..., Any], number: int) -> None:
    torch.manual_seed(0)
    head_cfg = HEAD | dict(num_seen_queries=4)
    detector = make_detector(pts_bbox_head=head_cfg, img_aux_head=dict(type="FirstHitHead")).eval()
    head = detector.pts_bbox_head
    starts = []
    head.transformer["decoder"].register_forward_pre_hook(
        lambda _, args: starts.append((args[0], args[-1]))
    )
    outside = torch.tensor([[1e3, 0.0, 0.0]])
    seen = [
        draw_surfaces(head, head.denormalise(torch.rand(number, 3))),
        draw_surfaces(head, outside.expand(9, 3)),
    ]
    own = min(number - 1, 4)  # the third does not exist
    detector.img_aux_head.seen_surfaces = lambda *args: seen
    with torch.no_grad():
        detector.test_step(make_batch(0, 1))
        expected = head.seen_feats(seen[0])
    points, feats = starts[0][0][:, :, 0], starts[0][1]
    learned = head.init_points.weight
    given = head.normalise(seen[0].points.float())
    for point, feat in zip(points[0, :own], feats[0, :own], strict=True):
        (index,) = (given == point).all(1).nonzero(as_tuple=True)
        assert index[0] != 2
        torch.testing.assert_close(feat, expected[index[0]])
    assert len({tuple(row) for row in points[0, :own].tolist()}) == own
    ranking = farthest_first(head.denormalise(learned), head.denormalise(points[0, :own]))
    rest = {tuple(row) for row in learned[ranking[: 10 - own]].tolist()}
    assert {tuple(row) for row in points[0, own:].tolist()} == rest
    assert sorted(points[1].tolist()) == sorted(learned.tolist())
    assert (feats[0, own:] == 0).all() and (feats[1] == 0).all()


def test_starts_on_surfaces_give_gradients_without_surfaces(
    make_detector: Callable[..., Any],
) -> None:
    head_cfg = HEAD | dict(num_seen_queries=4, num_seen_points=6, seen_level=1)
    model = make_detector(pts_bbox_head=head_cfg, img_aux_head=dict(type="FirstHitHead")).train()
    batch = make_batch(0, 1)
    for blind in (False, True):
        model.zero_grad()
        if blind:
            nothing = torch.full_like(model.img_aux_head.predictor.bias, -50.0)
            nothing[model.img_aux_head.num_classes] = 50.0
            model.img_aux_head.predictor.bias.data = nothing
        losses = model(**model.data_preprocessor(batch, True), mode="loss")
        sum(value for name, value in losses.items() if "loss" in name).backward()
        head = model.pts_bbox_head
        for weight in (head.seen_feats.of_class, head.seen_point_feats.of_class):
            assert weight.grad is not None and (weight.grad == 0).all() == blind


@pytest.mark.parametrize("number", [3, 5, 7])
def test_seen_points_join_the_last_layer(make_detector: Callable[..., Any], number: int) -> None:
    """The voxels are those of a plain way: one set of points, dilated by one voxel."""
    torch.manual_seed(0)
    head_cfg = HEAD | dict(num_seen_points=number)
    head = make_detector(
        pts_bbox_head=head_cfg, img_aux_head=dict(type="FirstHitHead")
    ).pts_bbox_head.eval()
    inside = head.denormalise(torch.rand(5, 3))
    nowhere = torch.tensor([[1e3, 0.0, 0.0], [0.0, 0.0, 0.0]])  # outside; does not exist
    surfaces = draw_surfaces(head, torch.cat([inside[:1], nowhere, inside[1:]]))
    with torch.no_grad():
        output = head(make_feats(1), make_geometry(1), seen=[surfaces])
        # five points: some twice, all, or some of them, evenly
        chosen = {3: [0, 1, 3], 5: [0, 1, 2, 3, 4], 7: [0, 1, 2, 3, 4, 0, 1]}[number]
        torch.testing.assert_close(output.extra.points, inside[None, chosen])
        places = torch.tensor([0, 3, 4, 5, 6])[chosen]
        expected_feats = head.seen_point_feats(surfaces.take(places))
        torch.testing.assert_close(output.extra.feats, expected_feats[None])
        points, feats = output.points[-1], output.point_feats[-1]
        without = head.densifiers[-1](head.denormalise(points), feats)
    voxels = {tuple(row) for row in output.voxels[-1].coords[:, 1:].tolist()}
    size = torch.tensor(head.grid_shape)
    index = (head.normalise(inside[chosen]) * size).long()
    around = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3)
    added = (index[:, None] + around).flatten(0, 1)
    added = added[((added >= 0) & (added < size)).all(1)]
    expected = {tuple(row) for row in without.coords[:, 1:].tolist()}
    expected |= {tuple(row) for row in added.tolist()}
    assert voxels == expected and len(voxels) > len(without.coords)


def test_seen_points_have_features_of_their_own(make_detector: Callable[..., Any]) -> None:
    """A point without a query acts as the only point of a query."""
    head = make_detector(
        pts_bbox_head=HEAD | dict(num_seen_points=3), img_aux_head=dict(type="FirstHitHead")
    ).pts_bbox_head.eval()
    densifier = head.densifiers[-1]
    far = head.denormalise(torch.tensor([[[[0.1, 0.1, 0.1]]]]))
    points = head.denormalise(torch.tensor([[[0.7, 0.6, 0.4], [0.71, 0.6, 0.4]]]))
    feats = torch.randn(1, 2, 4)
    with torch.no_grad():
        found = densifier(far, torch.ones(1, 1, 1, 4), extra=ExtraPoints(points, feats))
        expected = densifier(
            torch.cat([far, points[:, :, None]], 1),
            torch.cat([torch.ones(1, 1, 1, 4), feats[:, :, None]], 1),
        )
    assert torch.equal(found.coords, expected.coords)
    torch.testing.assert_close(found.logits, expected.logits)


def test_queries_on_seen_surfaces_need_the_auxiliary_head(
    make_detector: Callable[..., Any],
) -> None:
    for key in ("num_seen_queries", "num_seen_points"):
        detector = make_detector(pts_bbox_head=HEAD | {key: 4}).eval()
        with pytest.raises(ModelConfigError, match="give the model an img_aux_head"):
            detector.test_step(make_batch(0))
