"""Nano models trained on 1, 2 and 4 processes, whole or in parts, are equal.

train.py trains with augmentation, grid mask and dropout on the hand-made data set. Batch norms are
in eval mode except for one training.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from process_equality import Job
from torch import Tensor

from tests.loaders.conftest import mini  # noqa: F401 - a fixture

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
V1, V2, DCD, FUSION = (
    "opusv1-nano_toy", "opusv2-nano_toy", "opusv2-nano_dcdloss_toy", "opusv2-fusion-nano_toy",
)  # fmt: skip
FOUR = dict(batch_size=4, num_samples=5)  # four steps, as the others take
JOBS = [
    Job("v1 x 1", V1, 1),
    Job("v1 x 2", V1, 2),
    Job("v2 x 1", V2, 1),
    Job("v2 x 2", V2, 2),
    Job("v2 x 2 by rank", V2, 2, normalizer="rank"),
    Job("v2 x 2 norms", V2, 2, freeze_norms=False),
    Job("fusion x 1", FUSION, 1),
    Job("fusion x 2", FUSION, 2),
    Job("dcd x 1", DCD, 1, **FOUR),
    Job("dcd x 2", DCD, 2, **FOUR),
    Job("dcd x 4", DCD, 4, **FOUR),
    Job("dcd x 2, accumulated", DCD, 2, accumulation=2, **FOUR),
]


class Noted(NamedTuple):
    """Hold the records of a training by rank."""

    losses: list[list[float]]
    tokens: list[list[list[str]]]
    scores: list[dict[str, float]]
    start: list[dict[str, Tensor]]
    end: list[dict[str, Tensor]]


@pytest.fixture(scope="module")
def trainings(mini: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Noted]:  # noqa: F811
    folder = tmp_path_factory.mktemp("equality")
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps(dict(data_root=str(mini.root), folder=str(folder), jobs=JOBS)))
    env = os.environ | dict(
        PYTHONPATH=os.pathsep.join([str(HERE), str(ROOT)]), OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    command = [sys.executable, str(HERE / "process_equality.py"), str(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    return {job.name: read(folder / job.name, job.processes) for job in JOBS}


def read(folder: Path, processes: int) -> Noted:
    texts = [json.loads((folder / f"noted{r}.json").read_text()) for r in range(processes)]
    states = [torch.load(folder / f"weights{r}.pth") for r in range(processes)]
    keys = ("losses", "tokens", "scores")
    return Noted(
        *([text[key] for text in texts] for key in keys),
        start=[state["start"] for state in states],
        end=[state["end"] for state in states],
    )


PAIRS = [
    ("v1 x 1", "v1 x 2"),
    ("v2 x 1", "v2 x 2"),
    ("fusion x 1", "fusion x 2"),
    ("dcd x 1", "dcd x 2"),
    ("dcd x 1", "dcd x 4"),
    ("dcd x 1", "dcd x 2, accumulated"),
]


@pytest.mark.parametrize(("name", "other"), PAIRS, ids=[other for _, other in PAIRS])
def test_weights_losses_and_scores_are_those_of_one_process(
    trainings: dict[str, Noted], name: str, other: str
) -> None:
    one, many = trainings[name], trainings[other]
    assert len(one.losses[0]) >= 4
    seen = [sorted(chain(*step)) for step in zip(*many.tokens, strict=True)]
    assert seen == one.tokens[0]
    for losses in many.losses:  # as logged: the mean over the processes
        assert losses == many.losses[0] == pytest.approx(one.losses[0], rel=1e-5)
    moved, apart = 0.0, 0.0
    for key, value in one.end[0].items():
        start = one.start[0][key]
        assert torch.equal(many.start[0][key], start), key
        update, difference = (value - start).double(), (many.end[0][key] - value).double()
        moved += float(update.square().sum())
        apart += float(difference.square().sum())
        # Two units in the last place: a weight near 1 has a spacing of 1.2e-7.
        rounding = 2 * torch.finfo(torch.float32).eps * float(value.abs().max())
        assert difference.abs().max() <= 2e-3 * update.abs().max() + rounding, key
    assert moved > 0 and apart**0.5 < 1e-4 * moved**0.5  # rounding moves nothing across a border
    for state in many.end[1:]:
        assert all(torch.equal(state[key], value) for key, value in many.end[0].items())
    # three samples, so that processes have unequal shares of the evaluation
    assert one.scores[0]["occ3d/IoU"] > 0
    assert many.scores[0] == one.scores[0]


def test_published_normalisation_depends_on_the_processes(trainings: dict[str, Noted]) -> None:
    """The comparison above detects such a difference."""
    one, by_rank = trainings["v2 x 1"], trainings["v2 x 2 by rank"]
    assert by_rank.tokens == trainings["v2 x 2"].tokens
    apart = [abs(a / b - 1) for a, b in zip(by_rank.losses[0], one.losses[0], strict=True)]
    assert max(apart) > 4e-5  # rounding gives 1e-7


def test_processes_learn_the_same_batch_norm_statistics(trainings: dict[str, Noted]) -> None:
    training = trainings["v2 x 2 norms"]
    first, second = training.end
    statistics = [key for key in first if key.endswith(("running_mean", "running_var"))]
    assert any("densifiers" in key for key in statistics)
    assert any("img_backbone" in key for key in statistics)
    for key in first:
        assert torch.equal(first[key], second[key]), key
    for key in statistics:
        assert not torch.equal(first[key], training.start[0][key]), key
