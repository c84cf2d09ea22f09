"""The command that times a model: measurements, counts and output."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import ops
from scripts.runtime.config import load_config
from scripts.timings.command import build_model, main, repeated
from scripts.timings.counts import (
    FRAME,
    count_calls,
    counted_operations,
    gigaflop_by_stage,
    parameters_by_part,
)
from scripts.timings.inputs import (
    CAMERA_HEIGHT_M,
    STEP_M,
    InputSizes,
    SyntheticDrive,
    camera_ring,
    lidar_sweeps,
)
from scripts.timings.measure import Rate
from scripts.timings.stages import IMAGES, OTHER, Ledger, stages_of, watched
from tests.loaders.conftest import MiniSet, mini  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parents[2]
NANO = str(ROOT / "configs/toy/opusv2-nano_toy.py")
FUSION = str(ROOT / "configs/toy/opusv2-fusion-nano_toy.py")
POINTS = str(ROOT / "configs/toy/opusv1-nano_toy.py")
SHORT = ["--device", "cpu", "--samples", "3", "--warmup", "1", "--seconds", "60"]


def test_nested_stages_divide_the_time() -> None:
    clock = [0.0]
    ledger = Ledger(lambda: clock[0])

    def pass_time(seconds: float) -> None:
        clock[0] += seconds

    pass_time(100)  # before any stage: counted in none
    with ledger.stage("outer"):
        pass_time(1)
        with ledger.stage("inner"):
            pass_time(2)
            with ledger.stage("outer"):
                pass_time(4)
        pass_time(8)
    pass_time(100)
    with ledger.stage("inner"):
        pass_time(16)
    assert ledger.take() == {"outer": 13.0, "inner": 18.0}
    assert ledger.take() == {}


def test_rates_and_their_percentiles() -> None:
    ms = [10.0, 20.0, 30.0, 40.0, 50.0]
    rate = Rate("streaming", 10, ms[::-1], batch_size=2)
    assert rate.per_second() == pytest.approx(2000 / 30)
    assert rate.per_second(10) == pytest.approx(2000 / np.percentile(ms, 90))
    assert rate.per_second(90) == pytest.approx(2000 / np.percentile(ms, 10))
    assert Rate("one", 1, [4.0]).per_second(90) == 250


def test_launches_and_waits_inside_of_frames_are_counted() -> None:
    def event(name: str, start: float, end: float = 0.0) -> Any:
        return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end or start))

    events = [
        event("cudaDeviceSynchronize", 1),  # before
        event(FRAME, 10, 20),
        event("cudaLaunchKernel", 11),
        event("cuLaunchKernelEx", 12),
        event("cudaMemcpyAsync", 13),
        event("cudaStreamSynchronize", 14),
        event("aten::item", 14),
        event("cudaGraphLaunch", 20),
        event("cudaLaunchKernel", 21),  # behind
        event(FRAME, 30, 40),
        event("cudaMemcpy", 35),
    ]
    assert count_calls(events) == (4, 2)
    assert count_calls([]) == (0, 0)


def operations_of(function: Any, *args: Any) -> int:
    with counted_operations() as counter:
        function(*args)
    return counter.get_total_flops()


def test_native_operations_count_as_their_references() -> None:
    sampled, parameters = torch.randn(7, 6, 8), torch.randn(7, 8 * 8 + 5 * 6)
    ops.adaptive_mixing(sampled, parameters, 5)  # loads the library
    assert (
        operations_of(ops.adaptive_mixing, sampled, parameters, 5)
        == operations_of(ops.adaptive_mixing_reference, sampled, parameters, 5)
        == 2 * 7 * (6 * 8 * 8 + 5 * 6 * 8)
    )
    query, tau, centres = torch.randn(2, 3, 9, 4), torch.rand(2, 3, 9), torch.randn(2, 9, 3)
    attention = (query, query, query, tau, centres)
    with FlopCounterMode(display=False) as counter:
        scores = query @ query.transpose(-1, -2)
        scores @ query
    assert operations_of(ops.distance_attention, *attention) == counter.get_total_flops()
    coords = torch.unique(torch.randint(0, 5, (60, 4)).clamp(max=4) * torch.tensor([0, 1, 1, 1]),
                          dim=0)  # fmt: skip
    kernel_map = ops.build_kernel_map(coords, (5, 5, 5), 3, subm=True)
    conv = (torch.randn(len(coords), 3), torch.randn(4, 3, 3, 3, 3), None, kernel_map)
    pairs = sum(
        bool((abs(a - b) <= 1).all()) for a in coords[:, 1:].numpy() for b in coords[:, 1:].numpy()
    )
    assert operations_of(ops.sparse_conv, *conv) == 2 * pairs * 3 * 4
    maps = [torch.randn(1, 4, 8, h, 6) for h in (4, 5)]  # two frames of two cameras
    points, weights = torch.randn(1, 5, 2, 3, 3), torch.rand(1, 5, 2, 3, 2)
    matrices = torch.eye(4).expand(1, 4, 4, 4).contiguous()
    texels = 5 * 2 * (2 * 3) * 2 * 4  # queries, groups, points of all frames, levels, corners
    counted = operations_of(ops.multi_view_sampling, maps, points, matrices, weights, (8, 8), 2)
    assert counted == 2 * texels * 4  # c


def test_samples_of_a_drive_share_all_frames_but_one() -> None:
    sizes = InputSizes(num_frames=3, num_cams=2, img_hw=(4, 6))
    stream = SyntheticDrive(sizes, pool=4).batches(2)
    samples = []
    for _ in range(3):
        batch = next(stream)
        assert len(batch["inputs"]["img"]) == len(batch["data_samples"]) == 2
        samples += list(zip(batch["inputs"]["img"], batch["data_samples"], strict=True))
    seen: set[str] = set()
    for i, (images, element) in enumerate(samples):
        assert images.shape == (6, 3, 4, 6) and images.dtype == torch.uint8
        assert set(element.img_paths) - seen == {f"frame{i}/cam{n}.jpg" for n in range(2)}
        seen |= set(element.img_paths)
        if i:
            assert torch.equal(images[2:4], samples[i - 1][0][:2])
    assert not torch.equal(samples[0][0][:2], samples[1][0][:2])


def test_cameras_look_outwards_and_stay_behind() -> None:
    height, width = 100, 200
    matrices = camera_ring([0, 2], 4, (height, width))
    ahead = torch.tensor([20.0, 0.0, CAMERA_HEIGHT_M, 1.0])
    left = torch.tensor([0.0, 7.0, CAMERA_HEIGHT_M, 1.0])
    for matrix, point, depth in (
        (matrices[0], ahead, 20.0),
        (matrices[1], left, 7.0),
        (matrices[4], ahead, 20.0 + 2 * STEP_M),  # two frames ago the car was further back
    ):
        u, v, w, _ = (matrix @ point).tolist()
        assert (u / w, v / w, w) == pytest.approx((width / 2, height / 2, depth), abs=1e-3)
    right_of_it = matrices[0] @ torch.tensor([20.0, -1.0, CAMERA_HEIGHT_M, 1.0])
    assert right_of_it[0] / right_of_it[2] > width / 2


def test_sweeps_have_the_current_one_first() -> None:
    points = lidar_sweeps(3, torch.Generator().manual_seed(0))
    assert points.shape == (3 * 32 * 1084, 5) and points.isfinite().all()
    lags = points[:, 4].unique_consecutive()
    torch.testing.assert_close(lags, torch.tensor([0.0, 0.05, 0.1]))
    assert points[:, 2].min() > -2 and points[:, :2].norm(dim=1).max() < 50


def test_stages_follow_a_frame_and_change_nothing() -> None:
    cfg = load_config(NANO)
    model = build_model(cfg, torch.device("cpu"), None)
    model.pts_bbox_head.score_thr = 0.05
    batch = SyntheticDrive(InputSizes.of(cfg)).batch(range(1))
    with torch.no_grad():
        (plain,) = model.test_step(batch)
        coords = plain.pred_coords
        ledger = Ledger(lambda: float(torch.randint(0, 9, ())))
        with watched(model, ledger):
            (watched_sample,) = model.test_step(batch)
        assert len(coords) > 0 and torch.equal(watched_sample.pred_coords, coords)
        names = {stage for _, _, stage in stages_of(model)}
        # The first layer has no point features; only the last layer is discretised.
        assert set(ledger.take()) == names
        assert "forward" not in vars(model.pts_bbox_head)
        gigaflop = gigaflop_by_stage(model, lambda: model.test_step(batch))
    assert set(gigaflop) == names and gigaflop[OTHER] == 0
    products: list[int] = []
    hooks = [
        module.register_forward_hook(
            lambda m, _, out: products.append(out[0, 0].numel() * m.weight.numel())
        )
        for part in (model.img_backbone, model.img_neck)
        for module in part.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        model.test_step(batch)
    for hook in hooks:
        hook.remove()
    assert gigaflop[IMAGES] == pytest.approx(1e-9 * 2 * 6 * sum(products))
    of_training_alone = sum(p.numel() for p in model.img_aux_head.parameters())
    everything = sum(p.numel() for p in model.parameters())
    assert sum(parameters_by_part(model).values()) == everything - of_training_alone


@pytest.mark.parametrize(
    ("config", "options"), [(FUSION, []), (POINTS, ["num_frames=2"])], ids=["LiDAR", "V1"]
)
def test_the_command_times_a_model(
    config: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "timing.json"
    arguments = ["--config", config, *SHORT, "--json", str(out)]
    assert main([*arguments, *(["--cfg-options", *options] if options else [])]) == 0
    printed, found = capsys.readouterr().out, json.loads(out.read_text())
    streaming, independent = found["rates"]
    assert [streaming["way"], independent["way"]] == ["streaming", "independent"]
    for rate in (streaming, independent):
        speed = rate["frames_per_second"]
        assert len(rate["ms"]) == rate["samples"] == 3
        assert 0 < speed["p10"] <= speed["median"] <= speed["p90"]
        assert rate["peak_mib"]["host"] > 100
    stages = found["stages_ms"]
    assert all(ms >= 0 for ms in stages.values()) and stages[IMAGES] > 0
    assert ("LiDAR sparse network" in stages) == (config == FUSION)
    assert found["gigaflop"][IMAGES] > 0 and found["launches_per_frame"] is None
    for row in ("upload, normalisation", "image network", "prediction", "sampling", "mixing"):
        assert any(line.startswith(row) for line in printed.splitlines()), row
    assert "frames/s" in printed and "M parameters" in printed


def test_streaming_computes_only_the_new_frame() -> None:
    """The image network processes one frame in streaming, otherwise all."""
    cfg = load_config(NANO, {"num_frames": 3})
    model = build_model(cfg, torch.device("cpu"), None)
    batches = SyntheticDrive(InputSizes.of(cfg)).batches(1)
    model.streaming = True
    spent = []
    with torch.no_grad():
        model.test_step(next(batches))
        for streaming in (True, False):
            model.streaming = streaming
            batch = next(batches)
            spent.append(gigaflop_by_stage(model, lambda b=batch: model.test_step(b))[IMAGES])
    assert spent[1] == pytest.approx(3 * spent[0])


def test_small_split_is_computed_again_in_each_pass() -> None:
    """Its frames all fit into the cache."""
    cfg = load_config(NANO)
    model = build_model(cfg, torch.device("cpu"), None)
    drive = SyntheticDrive(InputSizes.of(cfg))
    split = [drive.batch(range(i, i + 1)) for i in range(2)]
    assert len(split) <= model.cache.limit
    model.streaming = True
    with torch.no_grad():
        for batch in itertools.islice(repeated(split, model), 4):
            gigaflop = gigaflop_by_stage(model, lambda b=batch: model.test_step(b))
            assert gigaflop[IMAGES] > 0


def test_files_are_timed_with_their_loader(
    mini: MiniSet,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from streaming_parts import write_config

    config = write_config(tmp_path, ROOT, mini.root)
    out = tmp_path / "timing.json"
    arguments = ["--config", str(config), *SHORT, "--ways", "streaming"]
    arguments += ["--from-files", "--json", str(out)]
    assert main(arguments) == 0
    found = json.loads(out.read_text())
    ways = [rate["way"] for rate in found["rates"]]
    assert ways == ["streaming", "streaming from files"]
    assert found["input"] == "test split" and "streaming from files" in capsys.readouterr().out


def test_mistakes_are_told_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--weights", "nowhere.pth"], "nowhere.pth does not exist"),
        (["--samples", "0"], "'0' is not a whole number from 1"),
        (["--dtype", "float16"], "is only for GPUs: set eval_dtype='auto'"),
        (["--cfg-options", "compile=3"], "compile is 3: set True"),
    ):
        assert main(["--config", NANO, *SHORT, *arguments]) == 2
        assert words in capsys.readouterr().err
