"""The type of an error decides whether it ends in one sentence, in any process."""

from __future__ import annotations

import errno
import importlib
import inspect
import multiprocessing
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset

from loaders.errors import BadDataError, MissingDataError
from models.errors import ModelConfigError, UserError
from scripts.runtime.errors import (
    EXIT_INTERRUPTED,
    EXIT_USER_ERROR,
    ConfigError,
    TrainingInterrupted,
    describe,
    run_entry_point,
)

MESSAGE = "label file a: b.npz is broken\n(of 3 bytes): extract it again"
SENTENCE = "label file a: b.npz is broken (of 3 bytes): extract it again"


def user_errors(kind: type[UserError] = UserError) -> Iterator[type[UserError]]:
    for child in kind.__subclasses__():
        yield child
        yield from user_errors(child)


def all_user_errors() -> list[type[UserError]]:
    for name in (
        "models.ops._extension", "scripts.runtime.checkpoint", "scripts.golden.report",
        "scripts.toy_nuscenes.errors", "scripts.toy_runs.steps",
    ):  # fmt: skip
        importlib.import_module(name)
    return [UserError, *user_errors()]


def caught(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("no error")


def test_every_kind_crosses_processes_with_its_type_and_sentence() -> None:
    kinds = all_user_errors()
    assert len(kinds) > 12
    for kind in kinds:
        error = kind(MESSAGE)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and describe(again) == SENTENCE
        try:
            raise error
        except UserError:
            wrapper = pickle.loads(pickle.dumps(ExceptionWrapper(where="in DataLoader worker 0")))
        arrived = caught(wrapper.reraise)
        assert type(arrived) is kind
        assert "Original Traceback" in str(arrived)  # for --debug
        assert describe(arrived) == SENTENCE


class _Broken(Dataset):
    def __init__(self, kind: type[Exception], is_chained: bool) -> None:
        self.kind, self.is_chained = kind, is_chained

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if not self.is_chained:
            raise self.kind(MESSAGE)
        try:
            raise KeyError("something else: ValueError: not this")
        except KeyError as error:
            raise self.kind(MESSAGE) from error


@pytest.mark.parametrize("is_chained", [False, True])
@pytest.mark.parametrize("kind", [BadDataError, MissingDataError, ModelConfigError])
def test_out_of_a_data_loading_process(kind: type[Exception], is_chained: bool) -> None:
    loader = DataLoader(_Broken(kind, is_chained), num_workers=1)
    error = caught(lambda: list(loader))
    assert type(error) is kind and describe(error) == SENTENCE


def test_a_defect_in_a_data_loading_process_is_a_defect() -> None:
    loader = DataLoader(_Broken(ValueError, False), num_workers=1)
    assert describe(caught(lambda: list(loader))) is None


def _fail(kind: type[Exception]) -> None:
    raise kind(MESSAGE)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_out_of_a_process_pool(method: str) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        for kind, sentence in (
            (ConfigError, SENTENCE),
            (BadDataError, SENTENCE),
            (ValueError, None),
        ):
            assert describe(caught(lambda k=kind: list(pool.map(_fail, [k])))) == sentence  # type: ignore[misc]


def test_what_an_error_was_raised_from_counts_and_what_it_interrupted_does_not() -> None:
    def explained() -> None:
        try:
            raise BadDataError(MESSAGE)
        except BadDataError as error:
            raise RuntimeError("a library gave up") from error

    def while_handling() -> None:
        try:
            raise BadDataError(MESSAGE)
        except BadDataError:
            [][0]  # a defect of the handler

    assert describe(caught(explained)) == SENTENCE
    assert describe(caught(while_handling)) is None


def test_defects_are_not_dressed_up() -> None:
    def broken_contract() -> None:
        raise ValueError("prediction and ground truth differ in shape")

    for function in (
        lambda: torch.zeros(2) + torch.zeros(3),
        lambda: [][0],
        lambda: int("x"),
        broken_contract,
        lambda: os.close(12345),  # an error of the system that no user can correct
        lambda: (_ for _ in ()).throw(FileNotFoundError("a library's words")),
    ):
        assert describe(caught(function)) is None


def test_system_errors_that_a_user_can_put_right(tmp_path: Path) -> None:
    file, folder, loop = tmp_path / "file", tmp_path / "folder", tmp_path / "loop"
    file.write_text("x")
    (folder / "inside").mkdir(parents=True)
    loop.symlink_to(loop)

    def write_to_a_full_disk() -> None:
        with open("/dev/full", "w") as full:
            full.write("x")

    for function, words in (
        (lambda: open(tmp_path / "none"), f"{tmp_path / 'none'} does not exist"),
        (lambda: open(folder), f"{folder} is a folder, a file is needed"),
        (lambda: os.listdir(file), f"{file} or a part of its path is a file"),
        (lambda: open(file / "x"), f"{file / 'x'} or a part of its path is a file"),
        (lambda: file.mkdir(exist_ok=True), f"{file} exists and is not a folder"),
        (lambda: folder.rmdir(), f"{folder} is not empty"),
        (lambda: open(tmp_path / ("x" * 300)), "is too long for the file system"),
        (lambda: open(loop), f"{loop} is a symbolic link that leads to itself"),
        (write_to_a_full_disk, "no space is left on the disk"),
    ):
        sentence = describe(caught(function))
        assert sentence is not None and words in sentence, words
        assert ": " in sentence  # the way out
    for number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
        sentence = describe(OSError(number, os.strerror(number), str(file)))
        assert sentence is not None and str(file) in sentence


def test_too_many_open_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    files: list = []
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 5, before[1])
        )
        error = caught(lambda: files.extend(open(os.devnull) for _ in range(100)))
    finally:
        for file in files:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "raise `ulimit -n`" in str(describe(error))


def test_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPUS_DEBUG", raising=False)

    def end(error: BaseException | None, debug: bool = False) -> tuple[int, str]:
        def main() -> None:
            if error is not None:
                raise error

        code = run_entry_point(main, debug=debug)
        return code, capsys.readouterr().err

    assert end(None) == (0, "")
    code, printed = end(ConfigError(MESSAGE))
    assert code == EXIT_USER_ERROR and printed.count("\n") == 1 and SENTENCE in printed
    code, printed = end(ConfigError(MESSAGE), debug=True)
    assert code == EXIT_USER_ERROR and "Traceback" in printed
    for stop in (KeyboardInterrupt(), TrainingInterrupted("stopped after 3 iterations")):
        code, printed = end(stop)
        assert code == EXIT_INTERRUPTED and printed.count("\n") == 1
    with pytest.raises(ZeroDivisionError):
        end(ZeroDivisionError("a defect"))


ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["train", "val", "visualize"]
COMMANDS += [f"scripts.{path.stem}" for path in sorted((ROOT / "scripts").glob("[a-z]*.py"))]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_debug_and_refuses_unknown_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = importlib.import_module(name)
    assert list(inspect.signature(command.main).parameters) == ["arguments"]
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0 and "--debug" in capsys.readouterr().out
    if name in ("scripts.emulate_cuda", "scripts.sanitize"):
        return  # what they do not know is pytest's
    assert command.main(["--no-such-option"]) == EXIT_USER_ERROR
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "--no-such-option" in line or "required" in line
