"""Published files: only weights, the hash in the name, two formats; averages and wrappers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from torch import nn

from scripts.checkpoints import publishing
from scripts.runtime.checkpoint import (
    CheckpointError,
    has_average,
    load_weights,
    read_checkpoint,
    revised_weights,
)
from tests.models.cases import DETECTOR


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build(DETECTOR)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) for key, value in first.items()
    )


@pytest.fixture
def checkpoint(tmp_path: Path, model: nn.Module) -> Path:
    """Write a checkpoint as train.py does."""
    path = tmp_path / "epoch_3.pth"
    optimizer = torch.optim.AdamW(model.parameters())
    meta = {"epoch": 3, "iter": 96, "cfg": "data_root = '/home/me/secret'", "seed": 1}
    content = {"meta": meta, "state_dict": model.state_dict()}
    content |= {"optimizer": optimizer.state_dict(), "message_hub": {"log": [1.0] * 1000}}
    torch.save(content, path)
    return path


@pytest.mark.parametrize("ending", ["", ".pth", ".safetensors"])
def test_weights_alone_under_a_name_with_their_hash(
    checkpoint: Path, model: nn.Module, tmp_path: Path, ending: str
) -> None:
    out = tmp_path / "out" / f"opusv2-small{ending}"
    path = publishing.publish(str(checkpoint), str(out))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"opusv2-small-{digest[:8]}{ending or '.pth'}"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert b"secret" not in path.read_bytes()
    content = read_checkpoint(path)
    assert set(content) == {"state_dict", "meta"}
    assert content["meta"]["epoch"] == 3 and "cfg" not in content["meta"]
    assert same(content["state_dict"], dict(model.state_dict()))
    assert publishing.publish(str(checkpoint), str(out)) == path  # the same weights, the same name
    other = MODELS.build(DETECTOR)
    info = load_weights(other, path)
    assert (info.epoch, info.iteration) == (3, 96)
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_safetensors_are_read_by_their_own_library(
    checkpoint: Path, model: nn.Module, tmp_path: Path
) -> None:
    path = publishing.publish(str(checkpoint), str(tmp_path / "small.safetensors"))
    assert same(safetensors.torch.load_file(path), dict(model.state_dict()))
    bare = tmp_path / "bare.safetensors"  # written elsewhere, without any notes
    safetensors.torch.save_file(dict(model.state_dict()), bare)
    assert same(read_checkpoint(bare)["state_dict"], dict(model.state_dict()))


def test_a_broken_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for content in (b"", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"{}      "):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            read_checkpoint(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "no.safetensors")


def test_the_average_of_mmengines_hook_is_chosen(tmp_path: Path, model: nn.Module) -> None:
    """The hook writes the file and stores the average as state_dict."""
    hook = EMAHook(momentum=0.5)
    averaged = MODELS.build(DETECTOR)
    hook.src_model, hook.ema_model = model, ExponentialMovingAverage(averaged, momentum=0.5)
    content = {"state_dict": model.state_dict()}
    hook.before_save_checkpoint(None, content)
    path = tmp_path / "ema.pth"
    torch.save(content, path)
    found = read_checkpoint(path)
    assert has_average(found)
    assert same(revised_weights(found), dict(averaged.state_dict()))


@pytest.mark.parametrize(
    "key", ["state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema.module"]
)
def test_an_average_beside_the_weights_is_chosen(
    tmp_path: Path, model: nn.Module, key: str
) -> None:
    weights = dict(model.state_dict())
    parameters = {name for name, _ in model.named_parameters()}
    average = {f"module.{k}": v + 1.0 for k, v in weights.items() if k in parameters}
    name, _, nested = key.partition(".")
    content = {"model": weights, name: {nested: average} if nested else average}
    torch.save(content, tmp_path / "a.pth")
    found = revised_weights(read_checkpoint(tmp_path / "a.pth"))
    assert found.keys() == weights.keys()
    for name, value in found.items():  # buffers, which have no average, come from the weights
        assert torch.equal(value, weights[name] + 1.0 if name in parameters else weights[name])


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module.model."])
@pytest.mark.parametrize("place", ["state_dict", "model", None])
def test_wrappers_and_other_places_are_accepted(
    tmp_path: Path, model: nn.Module, prefix: str, place: str | None
) -> None:
    weights = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save(weights if place is None else {place: weights, "epoch": 1}, tmp_path / "a.pth")
    other = MODELS.build(DETECTOR)
    load_weights(other, tmp_path / "a.pth")
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_the_command_checks_the_model(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "small.py"
    imports = "custom_imports = dict(imports=['models.register'])\n"
    config.write_text(f"{imports}model = {DETECTOR!r}\n")
    words = [str(checkpoint), str(tmp_path / "a"), "--config", str(config)]
    assert publishing.main(words) == 0
    assert "tensors" in capsys.readouterr().out
    other = {**DETECTOR, "pts_bbox_head": {**DETECTOR["pts_bbox_head"], "num_query": 11}}
    config.write_text(f"{imports}model = {other!r}\n")
    assert publishing.main(words) == 2
    assert "another model" in capsys.readouterr().err
    assert publishing.main([str(checkpoint), str(tmp_path / "a.ckpt")]) == 2
    assert ".safetensors" in capsys.readouterr().err
