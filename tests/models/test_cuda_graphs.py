"""Captured functions, with a recorder that repeats a call on the captured tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

import models.register  # noqa: F401
from models.cuda_graphs import CapturedFunction
from models.detectors.evaluation_network import EvaluationNetwork
from models.heads import SeenSurfaces
from tests.models.cases import HEAD, NUM_CLASSES, make_feats, make_geometry, merge


class Repeated:
    """Act on the CPU as a CUDA graph: repeat the call on the same memory."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, function: Any, inputs: Sequence[Tensor | None]) -> Any:
        self.captured += 1
        outputs = [None if x is None else torch.zeros_like(x) for x in function(*inputs)]

        def replay() -> None:
            self.replayed += 1
            for own, new in zip(outputs, function(*inputs), strict=True):
                if own is not None:
                    own.copy_(new)

        return replay, outputs


def weighted(x: Tensor, y: Tensor | None) -> list[Tensor | None]:
    return [x * 2 if y is None else x * 2 + y, None]


@torch.no_grad()
def test_calls_are_captured_once_and_replayed_with_new_inputs() -> None:
    recorder = Repeated()
    function = CapturedFunction(weighted, recorder=recorder)
    first, nothing = function(torch.ones(3), torch.ones(3))
    second, _ = function(torch.full((3,), 5.0), torch.zeros(3))
    assert nothing is None
    assert first.tolist() == [3, 3, 3] and second.tolist() == [10, 10, 10]  # results are copies
    assert (recorder.captured, recorder.replayed) == (1, 2)
    function(torch.ones(4), torch.ones(4))  # another shape
    function(torch.ones(3), None)
    function(torch.ones(3, dtype=torch.float64), None)
    assert recorder.captured == 4
    function.forget()
    function(torch.ones(3), None)
    assert recorder.captured == 5


@torch.no_grad()
def test_large_inputs_are_read_in_place() -> None:
    recorder = Repeated()
    function = CapturedFunction(weighted, copies_results=False, copied_bytes=8, recorder=recorder)
    ring = torch.arange(12.0).view(3, 4)
    for turn in range(2):
        for i in range(3):
            found, _ = function(ring[i], torch.tensor([1.0]))
            assert torch.equal(found, ring[i] * 2 + 1)
            assert recorder.captured == (i + 1 if turn == 0 else 3)
        ring += 1
    assert found is function(ring[2], torch.tensor([1.0]))[0]


@torch.no_grad()
def test_graphs_used_longest_ago_go_first() -> None:
    recorder = Repeated()
    function = CapturedFunction(weighted, most_graphs=2, recorder=recorder)
    for size in (1, 2, 1, 3, 1, 2):
        function(torch.ones(size), None)
    assert recorder.captured == 4  # 1, 2, 3, and 2 again


def test_without_a_gpu_or_with_gradients_the_function_is_called() -> None:
    x = torch.ones(3, requires_grad=True)
    recorder = Repeated()
    for function in (CapturedFunction(weighted), CapturedFunction(weighted, recorder=recorder)):
        out, _ = function(x, None)
        out.sum().backward()
    with torch.no_grad():
        assert CapturedFunction(weighted)(x, None)[0].tolist() == [2, 2, 2]
    assert recorder.captured == 0


@torch.no_grad()
def test_a_capture_that_fails_is_told_once() -> None:
    def refuse(*args: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    function = CapturedFunction(weighted, recorder=refuse)
    with pytest.warns(UserWarning, match="no CUDA graphs: operation not permitted"):
        out, _ = function(torch.ones(2), None)
    assert out.tolist() == [2, 2]
    assert function(torch.ones(2), None)[0].tolist() == [2, 2]


@torch.no_grad()
def test_inputs_that_move_all_the_time_end_it() -> None:
    recorder = Repeated()
    function = CapturedFunction(weighted, most_graphs=2, copied_bytes=0, recorder=recorder)
    places = [torch.full((3,), float(i)) for i in range(8)]
    with pytest.warns(UserWarning, match="large inputs change their address"):
        results = [function(x, None)[0].tolist() for x in places]
    assert results == [[2.0 * i] * 3 for i in range(8)]
    assert recorder.captured == 5


@torch.no_grad()
def test_image_network_in_graphs_gives_the_same() -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU())]
    parts[1].forward = lambda x: [x.relu(), x[..., ::2, ::2]]  # type: ignore[method-assign]
    network = EvaluationNetwork(parts, cuda_graphs=True)
    recorder = Repeated()
    network._captured._recorder = recorder
    for _ in range(3):
        images = torch.randn(2, 3, 8, 8)
        for own, other in zip(network(images), network._run(images), strict=True):
            assert torch.equal(own, other)
    assert (recorder.captured, recorder.replayed) == (1, 3)


@pytest.mark.parametrize("num_seen", [0, 4])
@torch.no_grad()
def test_decoder_in_graphs_gives_the_same(num_seen: int) -> None:
    torch.manual_seed(0)
    config = merge(HEAD, num_seen_queries=num_seen)
    plain = MODELS.build(config).eval()
    head = MODELS.build(merge(config, decoder=HEAD["decoder"] | dict(cuda_graphs=True))).eval()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.1)
    plain.load_state_dict(head.state_dict())
    recorder = Repeated()
    decoder = head.transformer["decoder"]
    decoder._captured._recorder = recorder
    for seed in range(3):
        feats = make_feats(1, seed)
        points = plain.denormalise(torch.rand(5, 3)).double()
        shares = torch.rand(5, NUM_CLASSES + 1)
        feats_of_seen = torch.randn(5, plain.embed_dims)
        seen = [SeenSurfaces(points, feats_of_seen, shares, torch.arange(5) > 0)]
        found = head(feats, make_geometry(1), seen=seen)
        expected = plain(feats, make_geometry(1), seen=seen)
        assert torch.equal(found.query_feats, expected.query_feats)
        for name in ("points", "sampling_points"):
            for own, other in zip(getattr(found, name), getattr(expected, name), strict=True):
                assert torch.equal(own, other), name
        assert found.point_feats[0] is None
        assert torch.equal(found.point_feats[1], expected.point_feats[1])
    assert (recorder.captured, recorder.replayed) == (1, 3)
    head.double()  # parameters lie elsewhere
    head([level.double() for level in make_feats(1)], make_geometry(1, torch.float64), seen=seen)
    assert recorder.captured == 2
