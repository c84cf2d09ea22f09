"""A streaming model equals the plain PyTorch baseline of the benchmarks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.bench_detector import check_agreement
from benchmarks.model_cases import config_of
from benchmarks.plain_detector import PlainStream, plain_way
from scripts.timings.command import build_model
from scripts.timings.inputs import InputSizes, SyntheticDrive


@torch.no_grad()
@pytest.mark.parametrize("size", ["nano", "v1nano"])
def test_streams_of_both_ways_compute_the_same(size: str) -> None:
    cfg = config_of(size, num_frames=3)
    cfg.model.streaming = True
    model: Any = build_model(cfg, torch.device("cpu"), None)
    stream, drive = PlainStream(model), SyntheticDrive(InputSizes.of(cfg))
    before = None
    for index in range(3):
        data = model.data_preprocessor(drive.batch(range(index, index + 1)))
        ours = model(**data, mode="tensor")
        with plain_way(model, stream):
            plain = model(**data, mode="tensor")
        check_agreement(size, ours, plain)
        if before is not None:  # images do matter
            with pytest.raises(SystemExit, match="of the points agree"):
                check_agreement(size, ours, before)
        before = ours
