"""The config is given once, in one of two forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.runtime.command_line import CommandParser, add_config_arguments
from scripts.runtime.errors import ConfigError

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "toy" / "opusv2-nano_toy.py")


def parser() -> CommandParser:
    parser = CommandParser("A command.")
    add_config_arguments(parser)
    parser.add_argument("--work-dir")
    parser.add_argument("--masks", nargs="+")
    return parser


@pytest.mark.parametrize(
    "words",
    [
        [CONFIG],
        ["--config", CONFIG],
        [f"--config={CONFIG}"],
        [CONFIG, "--work-dir", "x"],
        ["--work-dir", "x", CONFIG],
        ["--work-dir", "x", "--config", CONFIG, "--debug"],
        ["--debug", CONFIG, "--masks", "camera", "lidar"],
    ],
)
def test_both_forms_are_read(words: list[str]) -> None:
    assert parser().parse_args(words).config == CONFIG


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no config is given"),
        (["--work-dir", "x"], "no config is given"),
        ([CONFIG, "--config", CONFIG], "given twice"),
        ([CONFIG, CONFIG], "unknown argument"),
        (["--config", CONFIG, "--wrok-dir", "x"], "unknown argument --wrok-dir"),
        (["none.py"], "none.py does not exist"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parser().parse_args(words)
