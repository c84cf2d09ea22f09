"""Standard operators for other runtimes equal the native operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement

from models import ops
from models.heads import point_head
from scripts.export import standard_operations as standard
from scripts.export.comparison import compare
from scripts.export.graphs import Decoder, ImageNetwork, Layout, Voxels
from scripts.export.source import Source, frame_of, predict, random_item
from scripts.golden.heads import HeadCase, load_case
from tests.export.conftest import KINDS
from tests.models.cases import HW, N, T, camera_matrices

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("pairing", ["published", "straight"])
def test_sampling_reads_stacked_cameras(pairing: str) -> None:
    Q, G, P, C, sizes = 40, 4, 3, 16, ((16, 24), (8, 12), (1, 5))
    feats = [torch.randn(1, T * N, C, *size) for size in sizes]
    points = torch.randn(1, Q, G, P, 3) * torch.tensor([9.0, 9.0, 2.0])
    points[0, 0, 0, 0] = torch.inf
    weights = torch.rand(1, Q, G, P, len(sizes)).softmax(-1)
    arguments = (points, camera_matrices()[None], weights, HW, N, pairing)
    expected = ops.multi_view_sampling_reference(feats, *arguments)
    stacked = [standard.stack_cameras(feat[0], N) for feat in feats]
    found = standard.multi_view_sampling(stacked, *arguments)
    assert (expected != 0).float().mean() > 0.3  # points are seen
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_points_are_grouped_by_voxel() -> None:
    keys = torch.randint(0, 500, (300,))
    unique, inverse = standard.unique_voxels(keys, 500)
    expected, expected_inverse = ops.unique_voxels_reference(keys, 500)
    assert torch.equal(unique, expected) and torch.equal(inverse, expected_inverse)
    features = torch.randn(300, 7)
    torch.testing.assert_close(
        standard.voxel_max(features, inverse, len(unique)),
        ops.voxel_max_reference(features, inverse, len(unique)),
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "subm"),
    [
        ((3, 3, 3), (1, 1, 1), (1, 1, 1), True),
        ((3, 3, 3), (1, 1, 1), (1, 1, 1), False),
        ((3, 3, 3), (2, 2, 2), (0, 1, 1), False),
        ((3, 1, 1), (2, 1, 1), (0, 0, 0), False),
        ((2, 3, 1), (1, 3, 2), (1, 0, 2), False),
    ],
)
def test_sparse_convolution_gathers_its_neighbours(
    kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], subm: bool
) -> None:
    shape = (7, 9, 11)
    coords = torch.nonzero(torch.rand(1, *shape) < 0.1)
    features, weight, bias = torch.randn(len(coords), 5), torch.randn(6, *kernel, 5), torch.randn(6)
    settings = (coords, shape, kernel, stride, padding, subm)
    expected_map = ops.build_kernel_map_reference(*settings)
    found_map = standard.build_kernel_map(*settings)
    assert torch.equal(found_map.out_coords, expected_map.out_coords)
    torch.testing.assert_close(
        standard.sparse_conv(features, weight, bias, found_map),
        ops.sparse_conv_reference(features, weight, bias, expected_map),
    )


def test_farthest_points_and_closing() -> None:
    points = torch.randn(200, 3)
    for number in (None, 150, 0):  # the points from `number` on do not exist
        if number is not None:
            points[number:, 1] = math.nan
        found = standard.farthest_point_sampling(points, 30)
        assert torch.equal(found, ops.farthest_point_sampling_reference(points, 30))
    volume = torch.rand(3, 6, 5, 4)
    assert torch.equal(standard.closing(volume), point_head.closing(volume))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", Layout)
@torch.no_grad()
def test_functions_of_a_model_predict_what_it_predicts(
    kind: str, layout: Layout, make_source: Callable[..., Source]
) -> None:
    source = make_source(kind)
    item = random_item(source)
    expected = predict(source, item)
    frame = frame_of(source, item)
    images, decoder = ImageNetwork(source.detector, layout), Decoder(source.detector, HW, layout)
    if layout is Layout.STACKED:
        with standard.standard_operations():
            found = decoder(images(frame.images), frame.occ2img, frame.lidar)
    else:
        found = decoder(images(frame.images), frame.occ2img, frame.lidar)
    agreement = compare(expected, found)
    assert agreement.expected > 20
    tolerance = 2e-4 if kind == "v2_plus" else 1e-4
    assert agreement.share == 1 and agreement.score_error < tolerance, agreement


@pytest.mark.parametrize("name", ["opusv1_head", "opusv1_fusion_head", "opusv2_head"])
@torch.no_grad()
def test_reference_numbers(name: str) -> None:
    """Standard operations reproduce the stored predictions of heads in double precision."""
    golden = dict(np.load(GOLDEN / f"{name}.npz"))
    case = load_case(golden, torch.float64)
    case.head.eval()
    for index in range(len(case.samples)):
        found = predict_alone(case, index)
        expected = Voxels(
            torch.from_numpy(golden[f"occ/{index}.loc"]).long(),
            torch.from_numpy(golden[f"occ/{index}.label"]).long(),
            found.scores,  # not stored; the numbers of voxels are compared first
        )
        assert len(expected.coords) == len(found.coords) > 0
        assert compare(expected, found).share == 1


def predict_alone(case: HeadCase, index: int) -> Voxels:
    head, geometry = case.head, case.geometry
    with standard.standard_operations():
        lidar = case.lidar
        if lidar is None:
            start, bev_feats = head.init_points.weight, None
        else:
            points = lidar.points[index]
            sweep = points[points[:, 4] == 0, :3]
            taken = ops.farthest_point_sampling(sweep, head.num_query)
            start, bev_feats = head.normalise(sweep[taken]), lidar.bev_feats[index : index + 1]
        levels = [standard.stack_cameras(level[index], head.num_cams) for level in case.mlvl_feats]
        occ2img = geometry.occ2img()[index : index + 1]
        output = head.decode(start[None, :, None], levels, occ2img, geometry.img_hw, bev_feats)
        (sample,) = head.predict(output, [BaseDataElement()])
    return Voxels(sample.pred_coords, sample.pred_labels, sample.pred_scores)
