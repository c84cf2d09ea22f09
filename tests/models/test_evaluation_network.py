"""The image network in evaluation: folded norms, layout, precision, compilation, new frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from models.detectors import evaluation_network
from models.detectors.evaluation_network import EvaluationNetwork
from models.layers.channels import is_channels_last
from tests.models.cases import DETECTOR, HW, N, T, make_batch, make_sample, merge

LEVELS = [(16, 24), (8, 12), (4, 6)]


@pytest.fixture
def detector(make_detector: Callable[..., Any]) -> Callable[..., Any]:
    """Build detectors of equal weights; batch norms and images affect the results."""
    head = merge(DETECTOR["pts_bbox_head"], score_thr=0.005)

    def make(**changes: Any) -> Any:
        torch.manual_seed(0)
        model = make_detector(pts_bbox_head=head, **changes)
        for name, parameter in model.named_parameters():
            if name.endswith(("parameter_generator.weight", "sampling_offset.weight")):
                nn.init.normal_(parameter, std=0.05)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 1.5)
        return model.eval()

    return make


def images(batch: int = 1) -> Tensor:
    return torch.randn(batch, T * N, 3, *HW, generator=torch.Generator().manual_seed(1))


def drive(samples: int) -> list[dict[str, Any]]:
    """Return batches of one sample, each with a new frame and the previous one."""
    everything = make_batch(0, num_frames=samples + T - 1)
    paths = everything["data_samples"][0].img_paths
    batches = []
    for current in range(samples - 1, -1, -1):  # frame 0 is the newest
        batch, frames = make_batch(0), slice(current * N, (current + T) * N)
        batch["inputs"]["img"] = [everything["inputs"]["img"][0][frames]]
        batch["data_samples"][0].set_metainfo(dict(img_paths=paths[frames]))
        batches.append(batch)
    return batches


def test_norms_are_folded_and_results_stay(detector: Callable[..., Any]) -> None:
    model = detector()
    with torch.enable_grad():
        expected = model.extract_feat(images(), [])  # of the modules themselves
    with torch.no_grad():
        actual = model.extract_feat(images(), [])
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-4 * float(b.detach().std()))
    parts = model._evaluation_network()._parts
    assert not any(isinstance(m, nn.BatchNorm2d) for part in parts for m in part.modules())
    for weight in (p for part in parts for p in part.parameters() if p.ndim == 4):
        assert weight.is_contiguous(memory_format=torch.channels_last)
    own = set(model.state_dict())
    assert own == set(detector().state_dict())  # the copy is no part of the model
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


class NormFirst(nn.Module):
    """Module with a norm that is defined after its convolution and applied before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(3)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(self.norm(x))]


class NormLast(NormFirst):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.norm(self.conv(x))]


@torch.no_grad()
def test_norms_that_do_not_follow_their_convolution_stay() -> None:
    for kind, folds in ((NormLast, True), (NormFirst, False)):
        module = kind().eval()
        network, x = EvaluationNetwork([module]), torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(network(x)[0], module(x)[0], rtol=1e-5, atol=1e-5)
        norms = [m for m in network._parts[0].modules() if isinstance(m, nn.BatchNorm2d)]
        assert bool(norms) != folds


@torch.no_grad()
def test_changed_weights_and_later_hooks_are_seen(detector: Callable[..., Any]) -> None:
    model = detector()
    before = model.extract_feat(images(), [])
    seen: list[int] = []
    model.img_neck.register_forward_hook(lambda *_: seen.append(1))
    conv = model.img_neck.lateral_convs[0].conv
    conv.weight.mul_(2)
    after = model.extract_feat(images(), [])
    assert seen == [1] and not torch.allclose(before[0], after[0])
    with torch.enable_grad():
        expected = model.extract_feat(images(), [])
    torch.testing.assert_close(after[0], expected[0].detach(), rtol=1e-4, atol=1e-3)


def branches(detector: Callable[..., Any]) -> dict[str, Callable[[int], list[Tensor]]]:
    """Run all branches of `extract_feat` for a batch."""

    def samples(batch: int) -> list[BaseDataElement]:
        return [make_sample(seed) for seed in range(batch)]

    plain, streaming = detector(), detector(streaming=True)
    with_mask = detector(grid_mask=dict(type="GridMask", prob=1.0))
    stops = detector(stop_prev_grad=1)

    def evaluate(model: Any) -> Callable[[int], list[Tensor]]:
        return torch.no_grad()(lambda b: model.eval().extract_feat(images(b), samples(b)))

    def again(batch: int) -> list[Tensor]:
        evaluate(streaming)(batch)
        with torch.no_grad():
            return streaming.extract_feat(images(batch), samples(batch))

    return {
        "evaluation": evaluate(plain),
        "evaluation, gradients": lambda b: plain.eval().extract_feat(images(b), samples(b)),
        "bfloat16": evaluate(detector(eval_dtype="auto")),
        "streaming, new frames": evaluate(streaming),
        "streaming, known frames": again,
        "training": lambda b: plain.train().extract_feat(images(b), samples(b)),
        "training, mask": lambda b: with_mask.train().extract_feat(images(b), samples(b)),
        "training, gradient of the current frame": lambda b: stops.train().extract_feat(
            images(b), samples(b)
        ),
        "evaluation, gradient of the current frame": evaluate(stops),
    }


def test_every_branch_gives_channels_last_maps(detector: Callable[..., Any]) -> None:
    for name, extract in branches(detector).items():
        for batch in (1, 2):
            for level, (h, w) in zip(extract(batch), LEVELS, strict=True):
                assert level.shape == (batch, T * N, 32, h, w), name
                assert is_channels_last(level), f"{name}, batch of {batch}"


@torch.no_grad()
def test_precision_applies_to_the_image_network_and_its_maps(
    detector: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_network, "multiplies_bfloat16", lambda device: True)
    expected = detector().extract_feat(images(), [])
    for name in ("bfloat16", "auto"):
        model = detector(eval_dtype=name)
        seen: list[torch.dtype] = []
        model.img_backbone.register_forward_pre_hook(
            lambda _, x, seen=seen: seen.append(x[0].dtype)
        )
        feats = model.extract_feat(images(), [])
        assert seen == [torch.bfloat16] and {x.dtype for x in feats} == {torch.bfloat16}
        for a, b in zip(feats, expected, strict=True):
            assert 0 < (a.float() - b).abs().mean() < 0.02 * b.abs().mean()
        predicted = model(**model.data_preprocessor(make_batch(0)), mode="tensor")
        assert predicted.points[-1].dtype == torch.float32
        assert all(p.dtype == torch.float32 for p in model.parameters())
    with torch.enable_grad():  # training stays as it is
        assert model.train().extract_feat(images(), [])[0].dtype == torch.float32


@torch.no_grad()
def test_precision_that_the_device_lacks_is_refused(
    detector: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_network, "multiplies_bfloat16", lambda device: False)
    with pytest.raises(ValueError, match="does not multiply natively: set eval_dtype='auto'"):
        detector(eval_dtype="bfloat16").extract_feat(images(), [])
    with pytest.raises(ValueError, match="'float16' is only for GPUs: set eval_dtype='auto'"):
        detector(eval_dtype="float16").extract_feat(images(), [])
    assert detector(eval_dtype="auto").extract_feat(images(), [])[0].dtype == torch.float32
    with pytest.raises(ValueError, match="eval_dtype is 'half': set None, 'auto' or one of"):
        detector(eval_dtype="half")


@torch.no_grad()
def test_compilation_reaches_the_evaluation(detector: Callable[..., Any]) -> None:
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    model, plain = detector(), detector()
    model.compile_image_network(backend=backend, fullgraph=True)
    for a, b in zip(
        model.extract_feat(images(), []), plain.extract_feat(images(), []), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert len(graphs) == 2  # backbone and neck
    for _ in range(2):  # evaluations of a training: nothing is compiled again
        model.train().eval()
        model.extract_feat(images(), [])
    assert len(graphs) == 2


@torch.no_grad()
def test_new_frames_alone_are_prepared_and_predictions_stay(detector: Callable[..., Any]) -> None:
    plain, streaming = detector(), detector(streaming=True)
    prepared: list[int] = []
    normalised = streaming.data_preprocessor._normalised
    streaming.data_preprocessor._normalised = lambda x: (prepared.append(len(x)), normalised(x))[1]
    batches, found = drive(5), []
    for batch in (*batches, batches[-1]):  # the last one again
        expected, actual = (
            model.test_step(dict(batch, data_samples=[s.clone() for s in batch["data_samples"]]))
            for model in (plain, streaming)
        )
        for a, b in zip(actual, expected, strict=True):
            assert a.img_paths == b.img_paths and len(a.pred_labels) > 0
            assert torch.equal(a.pred_coords, b.pred_coords)
            torch.testing.assert_close(a.pred_scores, b.pred_scores, rtol=1e-4, atol=1e-5)
            found.append(float(a.pred_scores.sum()))
    assert len(set(found)) == 5  # images do matter
    assert prepared == [T * N, N, N, N, N, 0]


@torch.no_grad()
def test_a_batch_of_several_samples_streams(detector: Callable[..., Any]) -> None:
    plain, streaming = detector(), detector(streaming=True)
    parts = drive(4)
    for first in (0, 2):
        batch = dict(
            inputs=dict(img=[part["inputs"]["img"][0] for part in parts[first : first + 2]]),
            data_samples=[part["data_samples"][0] for part in parts[first : first + 2]],
        )
        expected, actual = (
            model.val_step(dict(batch, data_samples=[s.clone() for s in batch["data_samples"]]))
            for model in (plain, streaming)
        )
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a.pred_coords, b.pred_coords)


def test_backbones_of_another_kind_are_evaluated_too(make_detector: Callable[..., Any]) -> None:
    norm = dict(type="SyncBN", requires_grad=True)
    model = make_detector(img_backbone=merge(DETECTOR["img_backbone"], norm_cfg=norm)).eval()
    with torch.no_grad():
        assert model.extract_feat(images(), [])[0].isfinite().all()
