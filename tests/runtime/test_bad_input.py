"""User errors end in one sentence on standard error and exit code 2."""

from __future__ import annotations

import importlib
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import train
import val
from models.errors import UserError
from scripts.runtime.checkpoint import (
    CheckpointError,
    allow_checkpoint_classes,
    load_weights,
    read_checkpoint,
)
from scripts.runtime.errors import EXIT_USER_ERROR


class Runner:
    """Call an entry point and return its final sentence."""

    def __init__(self, config: Path, work_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.common = ["--work-dir", str(work_dir)]
        self.config = config
        self.capsys = capsys

    def train(self, *extra: str, config: Path | None = None) -> str:
        return self._sentence(
            train.main(["--config", str(config or self.config), *self.common, *extra])
        )

    def val(self, weights: Path, *extra: str) -> str:
        arguments = ["--config", str(self.config), *self.common, "--weights", str(weights)]
        return self._sentence(val.main([*arguments, *extra]))

    def _sentence(self, code: int) -> str:
        error = self.capsys.readouterr().err
        assert code == EXIT_USER_ERROR
        assert "Traceback" not in error
        lines = [line for line in error.splitlines() if line.strip() and "Warning" not in line]
        assert len(lines) == 1, error
        return lines[0]


@pytest.fixture
def run(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(config, tmp_path / "run", capsys)


def save_weights(path: Path, **kwargs: object) -> Path:
    from tiny_parts import TinyModel

    torch.save({"state_dict": TinyModel(**kwargs).state_dict()}, path)
    return path


# ---------------------------------------------------------------- checkpoints


def test_checkpoint_of_another_shape(run: Runner, tmp_path: Path) -> None:
    sentence = run.val(save_weights(tmp_path / "wide.pth", width=5))
    assert "wide.pth is a checkpoint of another model" in sentence
    assert "of another shape: linear.weight ((1, 5) in the file, (1, 3) in the model)" in sentence


def test_checkpoint_with_a_missing_key(run: Runner, tmp_path: Path) -> None:
    sentence = run.val(save_weights(tmp_path / "no_bias.pth", with_bias=False))
    assert "(missing: linear.bias)" in sentence


def test_checkpoint_with_other_keys_names_the_first(run: Runner, tmp_path: Path) -> None:
    weights = {f"backbone.{i}": torch.zeros(1) for i in range(9)}
    torch.save(weights, tmp_path / "other.pth")  # a bare state dict
    sentence = run.val(tmp_path / "other.pth")
    assert "missing: linear.weight, linear.bias" in sentence
    assert "unexpected: backbone.0, backbone.1, backbone.2 and 6 more" in sentence


@pytest.mark.parametrize("flag", ["--resume", "--load-from"])
def test_training_refuses_a_checkpoint_of_another_model(
    run: Runner, tmp_path: Path, flag: str
) -> None:
    sentence = run.train(flag, str(save_weights(tmp_path / "wide.pth", width=5)))
    assert "checkpoint of another model" in sentence


def test_load_from_that_is_missing(run: Runner) -> None:
    sentence = run.train("--cfg-options", "load_from=pretrain/nowhere.pth")
    place = f"pretrain/nowhere.pth does not exist in {Path.cwd()}"
    assert f"load_from {place}: put the checkpoint there" in sentence
    assert "--cfg-options load_from=None" in sentence


def test_resume_needs_more_than_weights(run: Runner, tmp_path: Path) -> None:
    sentence = run.train("--resume", str(save_weights(tmp_path / "weights.pth")))
    assert "weights.pth holds weights only and cannot be resumed: use --load-from" in sentence


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint at all\n",
        b"PK\x03\x04 a broken archive",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        pickle.dumps({"a": 1}, protocol=2)[:-1],
    ],
    ids=["empty", "text", "zip", "picture", "cut off"],
)
def test_weights_that_are_no_checkpoint(run: Runner, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    assert "weights.pth is not a PyTorch checkpoint" in run.val(path)


def test_weights_truncated(run: Runner, tmp_path: Path) -> None:
    path = save_weights(tmp_path / "weights.pth")
    path.write_bytes(path.read_bytes()[:-200])
    assert "weights.pth is not a PyTorch checkpoint, or is damaged" in run.val(path)


def test_weights_missing(run: Runner, tmp_path: Path) -> None:
    assert "checkpoint" in run.val(tmp_path / "nowhere.pth")
    assert "is a folder" in run.val(tmp_path)


def test_checkpoint_without_weights(run: Runner, tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "meta.pth")
    assert "holds no weights" in run.val(tmp_path / "meta.pth")


class _Harmful:
    def __reduce__(self) -> tuple:
        return (open, ("/nonexistent/harm", "w"))


def test_checkpoint_that_would_run_code_is_refused(run: Runner, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "extra": _Harmful()}, tmp_path / "harm.pth")
    sentence = run.val(tmp_path / "harm.pth")
    # Python 3.12 names the module differently.
    assert re.search(r"holds an object of class _?io\.open, which is not loaded for", sentence)


class _GetsAttribute:
    def __reduce__(self) -> tuple:
        return (getattr, (nn.Linear, "forward"))


def test_the_allow_list_does_not_open_getattr(tmp_path: Path) -> None:
    allow_checkpoint_classes()
    torch.save({"state_dict": {}, "extra": _GetsAttribute()}, tmp_path / "harm.pth")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "harm.pth")


def test_prefix_of_data_parallel_wrappers_is_dropped(tmp_path: Path) -> None:
    from tiny_parts import TinyModel

    model, other = TinyModel(), TinyModel()
    weights = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": weights, "meta": {"epoch": 2, "iter": 7}}, tmp_path / "ddp.pth")
    info = load_weights(other, tmp_path / "ddp.pth")
    assert (info.epoch, info.iteration) == (2, 7)
    torch.testing.assert_close(other.linear.weight, model.linear.weight)


# ---------------------------------------------------------------- configs and options


def test_unknown_key_of_a_model_part(run: Runner) -> None:
    sentence = run.train("--cfg-options", "model.with_bais=False")
    assert "model (TinyModel) does not take the key 'with_bais'" in sentence
    assert "did you mean 'with_bias'?" in sentence
    assert "it takes width, with_bias" in sentence


def test_unknown_key_of_a_published_part(run: Runner) -> None:
    """The key is also named if the part is nested deeply."""
    sentence = run.train(
        "--cfg-options",
        "model.type=mmdet.ResNet",
        "model.depth=18",
        "model.num_stagess=4",
    )
    assert "model (mmdet.ResNet) does not take the key 'num_stagess'" in sentence
    assert "did you mean 'num_stages'?" in sentence


def test_unknown_key_of_a_data_set(run: Runner) -> None:
    sentence = run.train("--cfg-options", "train_dataloader.dataset.colour=red")
    assert "train_dataloader.dataset (TinyDataset) does not take the key 'colour'" in sentence


def test_unknown_type(run: Runner) -> None:
    sentence = run.train("--cfg-options", "model.type=TinyModle")
    assert "model.type is 'TinyModle', which is not registered" in sentence
    assert "did you mean 'TinyModel'?" in sentence


def test_missing_key_of_a_part(run: Runner) -> None:
    sentence = run.train("--cfg-options", "model.type=mmdet.FPN", "model.in_channels=[8]")
    assert "lacks the key" in sentence and "'out_channels'" in sentence


def test_option_for_a_key_that_the_config_has_not(run: Runner) -> None:
    sentence = run.train("--cfg-options", "modle.width=3")
    assert "--cfg-options: modle" in sentence and "did you mean 'model'?" in sentence


def test_missing_config(run: Runner, tmp_path: Path) -> None:
    assert "config" in run.train(config=tmp_path / "nowhere.py")


def test_config_with_a_syntax_error(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("model = dict(\n")
    assert "broken.py cannot be read" in run.train(config=path)


def test_config_with_a_missing_base(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "child.py"
    path.write_text("_base_ = ['./parent.py']\n")
    sentence = run.train(config=path)
    assert "has a missing base file" in sentence and "parent.py" in sentence


def test_config_with_a_missing_module(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "child.py"
    path.write_text("custom_imports = dict(imports=['no_such_module'])\n")
    assert "no_such_module" in run.train(config=path)


def test_batch_size_must_be_positive(run: Runner) -> None:
    assert "batch_size is 0" in run.train("--cfg-options", "batch_size=0")


PRETRAINED = [
    "model.type=mmdet.ResNet",
    "model.depth=18",
    "model.init_cfg.type=Pretrained",
    "model.init_cfg.checkpoint=pretrain/none.pth",
]


def test_missing_pretrained_file(run: Runner) -> None:
    sentence = run.train("--cfg-options", *PRETRAINED)
    assert "model.init_cfg needs the pretrained file pretrain/none.pth" in sentence
    assert "--cfg-options model.init_cfg=None" in sentence


# ---------------------------------------------------------------- data


def test_missing_data_root(run: Runner, tmp_path: Path) -> None:
    importlib.import_module("loaders.register")
    sentence = run.train(
        "--cfg-options",
        "train_dataloader.dataset.type=NuScenesOcc3DDataset",
        f"train_dataloader.dataset.data_root={tmp_path / 'nowhere'}",
        "train_dataloader.dataset.ann_file=infos.pkl",
        "train_dataloader.dataset.pipeline=[]",
        "train_dataloader.dataset.num_frames=2",
    )
    assert f"data root {tmp_path / 'nowhere'} does not exist" in sentence


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_file_is_named_from_any_process(run: Runner, workers: int) -> None:
    """The sentence is extracted from the error text of a worker."""
    sentence = run.train(
        "--cfg-options",
        "train_dataloader.dataset.bad_file=images/17.jpg",
        f"train_dataloader.num_workers={workers}",
    )
    assert sentence.endswith("images/17.jpg is broken: write it again")


# ---------------------------------------------------------------- defects, not user errors


def test_debug_shows_the_traceback(config: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--config", str(config), "--weights", str(tmp_path / "none.pth"), "--debug"]
    assert val.main([*arguments, "--work-dir", str(tmp_path / "run")]) == EXIT_USER_ERROR
    assert "Traceback" in capsys.readouterr().err


def test_a_broken_contract_in_a_hook_keeps_its_traceback(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "child.py"
    path.write_text(
        f"_base_ = [{str(run.config)!r}]\ncustom_hooks = [dict(type='WrongShapesHook')]\n"
    )
    with pytest.raises((ValueError, RuntimeError)) as caught:
        run.train(config=path)
    assert not isinstance(caught.value, UserError)
    assert any(entry.name == "farthest_point_sampling" for entry in caught.traceback)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wrok-dir", "x"], "unknown argument --wrok-dir (did you mean --work-dir?)"),
        (["--cfg-options", "batch_size"], "'batch_size' is not KEY=VALUE"),
        (["--cfg-options", "=3"], "'=3' is not KEY=VALUE"),
        (["--cfg-options", "a=[1,(2"], "'a=[1,(2' is not KEY=VALUE: Imbalanced"),
    ],
)
def test_wrong_options(run: Runner, arguments: list[str], message: str) -> None:
    assert message in run.train(*arguments)


def test_work_dir_that_is_a_file(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert f"{tmp_path / 'run'} exists and is not a folder" in run.train()


@pytest.mark.parametrize("option", ["--out", "--save-predictions", "--submission"])
def test_results_that_could_not_be_written_are_refused_before_the_work(
    run: Runner, tmp_path: Path, option: str
) -> None:
    path = save_weights(tmp_path / "weights.pth")
    sentence = run.val(path, option, str(path / "x" / "y"))
    assert option in sentence and "weights.pth is a file, choose a folder" in sentence
    assert not (tmp_path / "run").exists()


def test_a_config_of_the_project_is_found_from_elsewhere(
    run: Runner, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "configs/toy/opusv2-nano_toy.py"
    sentence = run.train(config=Path(name))
    assert f"config {name} does not exist in {tmp_path}: give {root / name}" in sentence
    sentence = run.train(config=Path("opusv2-nanotoy.py"))
    assert f"did you mean {root / name}?" in sentence
