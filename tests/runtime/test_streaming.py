"""Streaming and independent evaluation predict the same, in any order, on many processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, MODELS, init_default_scope

import val
from scripts.runtime.config import load_config
from tests.loaders.conftest import MiniSet, mini  # noqa: F401 - a fixture

HERE = Path(__file__).resolve().parent
SAMPLES = 6  # scenes of four and of two key frames


@pytest.fixture(scope="module")
def config(mini: MiniSet, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    from streaming_parts import write_config

    return write_config(tmp_path_factory.mktemp("streaming"), HERE.parents[1], mini.root)


@pytest.fixture
def parts(config: Path) -> Iterator[tuple[Any, Any, Any]]:
    """Return a detector, a streaming copy of it, and a data set."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield build(config)
    torch.set_num_threads(threads)


def build(config: Path) -> tuple[Any, Any, Any]:
    from streaming_parts import disturb

    cfg = load_config(config)
    init_default_scope("mmengine")
    torch.manual_seed(0)
    plain = MODELS.build(cfg.model).eval()
    disturb(plain)
    streaming = MODELS.build({**cfg.model, "streaming": True}).eval()
    streaming.load_state_dict(plain.state_dict())
    return plain, streaming, DATASETS.build(cfg.test_dataloader.dataset)


@torch.no_grad()
def predict(model: Any, items: Sequence[dict[str, Any]]) -> list[tuple[np.ndarray, ...]]:
    batch = dict(
        inputs=dict(img=[item["inputs"]["img"] for item in items]),
        data_samples=[item["data_samples"].clone() for item in items],
    )
    found = model(**model.data_preprocessor(batch, False), mode="predict")
    return [
        (s.pred_coords.numpy(), s.pred_labels.numpy(), s.pred_scores.numpy()) for s in found
    ]  # fmt: skip


def assert_same(actual: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])
    np.testing.assert_allclose(actual[2], expected[2], rtol=0, atol=1e-9)


ORDERS = {
    "in order": list(range(SAMPLES)),
    "backwards": list(range(SAMPLES))[::-1],
    "shuffled": [3, 0, 5, 1, 4, 2],
    "from scene to scene": [0, 4, 1, 5, 2, 3],
    "repeated": [2, 2, 3, 2, 5, 5],
}


def test_predictions_are_the_same_in_any_order(parts: tuple[Any, Any, Any]) -> None:
    plain, streaming, dataset = parts
    items = [dataset[index] for index in range(len(dataset))]
    assert len({item["data_samples"].scene_name for item in items}) == 2
    expected = [predict(plain, [item])[0] for item in items]
    assert all(len(labels) > 1000 for _, labels, _ in expected)
    for first, second in pairwise(expected):  # images do matter
        assert not np.array_equal(first[0], second[0])
    computed: list[int] = []
    hook = streaming.img_backbone.register_forward_pre_hook(
        lambda _, x: computed.append(len(x[0]) // 6)
    )
    for order in ORDERS.values():  # one after the other: frames of the last order are still there
        for index in order:
            assert_same(predict(streaming, [items[index]])[0], expected[index])
            assert len(streaming.cache) <= streaming.cache.limit == 4
    streaming.cache.clear()
    computed.clear()
    for index in ORDERS["in order"]:
        predict(streaming, [items[index]])
    assert computed == [1] * SAMPLES  # the first frame of a scene repeats, all others are known
    streaming.cache.clear()
    batches = [predict(streaming, items[start : start + 4]) for start in (0, 4)]
    for actual, wanted in zip(sum(batches, []), expected, strict=True):  # noqa: RUF017
        assert_same(actual, wanted)
    hook.remove()


def test_models_and_data_sets_do_not_share_frames(
    parts: tuple[Any, Any, Any], config: Path
) -> None:
    from streaming_parts import disturb

    plain, streaming, dataset = parts
    other = MODELS.build({**load_config(config).model, "streaming": True}).eval()
    other.load_state_dict(plain.state_dict())
    disturb(other)
    item = dataset[2]
    wanted = predict(plain, [item])[0]
    assert_same(predict(streaming, [item])[0], wanted)
    found = predict(other, [item])[0]
    assert len(found[1]) > 0 and not np.array_equal(found[0], wanted[0])
    assert_same(predict(streaming, [item])[0], wanted)
    sample = item["data_samples"].clone()
    sample.set_metainfo(dict(img_paths=["elsewhere/" + path for path in sample.img_paths]))
    moved = dict(inputs=dict(img=item["inputs"]["img"].flip(-1)), data_samples=sample)
    assert_same(predict(streaming, [moved])[0], predict(plain, [moved])[0])
    assert_same(predict(streaming, [item])[0], wanted)


def evaluate(config: Path, folder: Path, processes: int, options: Sequence[str]) -> dict[str, Any]:
    out = folder.with_suffix(".json")
    arguments = ["--out", out, "--save-predictions", folder, "--work-dir", folder.parent / "run"]
    arguments += ["--weights", config.parent / "weights.pth", "--cfg-options", *options]
    command = [str(argument) for argument in arguments]
    if processes == 0:  # here
        assert val.main(["--config", str(config), *command]) == 0
        return json.loads(out.read_text())
    env = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    script = [str(HERE.parents[1] / "dist_val.sh"), str(processes), str(config)]
    done = subprocess.run(
        ["bash", *script, *command], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(out.read_text())
    assert report["processes"] == processes
    return report


def contents(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for path in folder.iterdir():
        with np.load(path) as file:
            found[path.stem] = dict(file)
    return found


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="compares with this process's CPU evaluation")
def test_any_number_of_processes_streams_what_one_predicts(config: Path, tmp_path: Path) -> None:
    """Five samples: one process has a last batch of one; two and three processes pad."""
    plain, _, _ = build(config)
    torch.save({"state_dict": plain.state_dict()}, config.parent / "weights.pth")
    few = "test_dataloader.dataset.indices=5"
    alone = evaluate(config, tmp_path / "alone", 0, [few])
    files = contents(tmp_path / "alone")
    assert len(files) == alone["metrics"]["saved_predictions"] == 5
    assert alone["metrics"]["occ3d/IoU"] > 0 and alone["metrics"]["ray/RayIoU"] > 0
    for processes in (1, 2, 3):
        folder = tmp_path / f"on{processes}"
        report = evaluate(config, folder, processes, [few, "model.streaming=True"])
        assert report["metrics"] == alone["metrics"]
        streamed = contents(folder)
        assert streamed.keys() == files.keys()
        for token, arrays in files.items():
            np.testing.assert_array_equal(streamed[token]["coords"], arrays["coords"])
            np.testing.assert_array_equal(streamed[token]["labels"], arrays["labels"])
