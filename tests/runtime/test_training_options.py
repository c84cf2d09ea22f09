"""Options of training, with a small real model on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from nano_parts import NanoDataset, write_config
from torch import nn

from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.finite_steps import Bfloat16OptimWrapper, FiniteOptimWrapper
from scripts.runtime.fit import fit_config
from scripts.runtime.launch import Launch
from scripts.runtime.model_options import checkpoint_activations, compile_parts
from scripts.runtime.runner import _runner_class

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return load_config(write_config(tmp_path_factory.mktemp("options"), ROOT, workers=0))


@pytest.fixture
def model(cfg: Config) -> nn.Module:
    torch.manual_seed(0)
    built: nn.Module = MODELS.build(cfg.model)
    built.init_weights()
    return built.train()


def train(model: Any, wrapper: type[FiniteOptimWrapper] = FiniteOptimWrapper) -> list[float]:
    """Train two steps; return their losses."""
    torch.manual_seed(1)  # dropout
    optimizer = wrapper(optimizer=torch.optim.SGD(model.parameters(), lr=1e-3))
    dataset = NanoDataset()
    losses = []
    for index in range(2):
        sample = dataset.prepare_data(index)
        batch = dict(
            inputs={key: [value] for key, value in sample["inputs"].items()},
            data_samples=[sample["data_samples"]],
        )
        losses.append(float(model.train_step(batch, optimizer)["loss"]))
    return losses


def copy_of(cfg: Config, model: nn.Module) -> nn.Module:
    built: nn.Module = MODELS.build(cfg.model)
    built.load_state_dict(model.state_dict())
    return built.train()


def assert_equal_states(first: nn.Module, second: nn.Module, **tolerance: float) -> None:
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, **tolerance, msg=key)


def test_bfloat16_on_the_cpu(
    cfg: Config, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the image network runs in bfloat16; losses are close to float32."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("scripts.runtime.fit.multiplies_bfloat16", lambda device: True)
    fitted = Config(cfg.to_dict())
    fitted.optim_wrapper.update(type="AmpOptimWrapper", dtype="bfloat16", loss_scale="dynamic")
    assert fit_config(fitted, Launch()) == []
    assert fitted.optim_wrapper.type == "Bfloat16OptimWrapper"
    assert not {"dtype", "loss_scale"} & set(fitted.optim_wrapper)

    other, image, points = copy_of(cfg, model), [], []
    convolution = next(m for m in model.img_neck.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_hook(lambda *a: image.append(a[-1].dtype))
    head = next(m for m in model.pts_bbox_head.modules() if isinstance(m, nn.Linear))
    head.register_forward_hook(lambda *a: points.append(a[-1].dtype))
    losses = train(model, Bfloat16OptimWrapper)
    assert set(image) == {torch.bfloat16} and set(points) == {torch.float32}
    assert losses == pytest.approx(train(other), rel=0.02)
    assert all(value.dtype != torch.bfloat16 for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("has_gpu", "multiplies", "dtype", "wrapper", "left", "note"),
    [
        (False, True, "auto", "Bfloat16OptimWrapper", None, None),
        (False, False, "auto", "OptimWrapper", None, "mixed precision is off"),
        (False, False, "bfloat16", "Bfloat16OptimWrapper", None, "slower than in float32"),
        (True, True, "auto", "Bfloat16OptimWrapper", None, None),
        (True, False, "auto", "AmpOptimWrapper", None, None),  # float16
        (True, False, "float16", "AmpOptimWrapper", "float16", None),
    ],
)
def test_mixed_precision_fits_the_device(
    has_gpu: bool, multiplies: bool, dtype: str, wrapper: str, left: str | None, note: str | None,
    cfg: Config, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    monkeypatch.setattr("scripts.runtime.fit.multiplies_bfloat16", lambda device: multiplies)
    fitted = Config(cfg.to_dict())
    fitted.optim_wrapper.update(type="AmpOptimWrapper", dtype=dtype)
    notes = fit_config(fitted, Launch())
    assert fitted.optim_wrapper.type == wrapper
    assert fitted.optim_wrapper.get("dtype") == left
    assert len(notes) == (note is not None) and (note or "") in "".join(notes)


def test_an_unknown_precision_is_one_sentence(cfg: Config) -> None:
    fitted = Config(cfg.to_dict())
    fitted.optim_wrapper.update(type="AmpOptimWrapper", dtype="bfloat")
    with pytest.raises(ConfigError, match=r"optim_wrapper.dtype is 'bfloat': use 'auto'"):
        fit_config(fitted, Launch())


@pytest.mark.parametrize("names", ["img_backbone", ["img_backbone.layer2", "img_neck"]])
def test_activation_checkpointing_trains_the_same_model(
    cfg: Config, model: nn.Module, names: str | list[str]
) -> None:
    """Weights and batch-norm statistics are equal, although the modules run twice."""
    plain, calls = copy_of(cfg, model), []
    convolution = model.img_backbone.layer2[0].conv1
    convolution.register_forward_hook(lambda *_: calls.append(1))
    checkpoint_activations(model, names)
    assert train(model) == train(plain)
    assert len(calls) == 4
    assert_equal_states(model, plain, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["img_backbon"], "did you mean 'img_backbone'"),
        ([""], "not a module of the model"),
        (True, "give a list of module names"),
    ],
)
def test_checkpointing_of_what_does_not_exist(model: nn.Module, names: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        checkpoint_activations(model, names)


def test_compiled_image_network(cfg: Config, model: nn.Module) -> None:
    """The back end gets only the graphs of backbone and neck."""
    plain, graphs = copy_of(cfg, model), []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph.forward

    assert compile_parts(model, dict(backend=backend))
    assert train(model) == pytest.approx(train(plain), rel=1e-5)
    assert graphs and any("conv" in graph for graph in graphs)
    assert not any("distance_attention" in graph for graph in graphs)
    assert_equal_states(model, plain, rtol=1e-4, atol=1e-5)


def test_compiled_decoder(cfg: Config, model: nn.Module) -> None:
    """Training is the same, in one graph of all layers."""
    plain, graphs = copy_of(cfg, model), []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph.forward

    assert compile_parts(model, dict(parts=["decoder"], backend=backend, fullgraph=True))
    assert train(model) == pytest.approx(train(plain), rel=1e-5)
    assert len(graphs) == 1 and "distance_attention" in graphs[0]
    assert_equal_states(model, plain, rtol=1e-4, atol=1e-5)


def test_compilation_that_cannot_be() -> None:
    assert not compile_parts(nn.Linear(1, 1), None)
    assert not compile_parts(nn.Linear(1, 1), False)
    with pytest.raises(ConfigError, match="models with an image network"):
        compile_parts(nn.Linear(1, 1), True)
    with pytest.raises(ConfigError, match="compile is 'x': set True"):
        compile_parts(nn.Linear(1, 1), "x")
    with pytest.raises(ConfigError, match=r"compile.parts is \['head'\]: give a list of"):
        compile_parts(nn.Linear(1, 1), dict(parts=["head"]))
    with pytest.raises(ConfigError, match="the decoder, which the model lacks"):
        compile_parts(nn.Linear(1, 1), dict(parts=["decoder"]))


def test_fully_sharded_training_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"FlexibleRunner.*cannot be resumed exactly"):
        _runner_class("FlexibleRunner")
