"""Command lines: a parser class for all commands, and shared options."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from scripts.runtime.errors import ConfigError, run_entry_point

CHECKOUT = Path(__file__).resolve().parents[2]


class CommandParser(argparse.ArgumentParser):
    """Parser with the option `--debug`; its errors are one-line `ConfigError`s.

    Args:
        description: The command's docstring, printed unchanged.
        takes_more: Collect unknown arguments in `others` for another program instead of rejecting
            them.

    Attributes:
        needs_config: Whether a config is required; see `add_config_arguments`.
    """

    needs_config = False

    def __init__(self, description: str | None, *, takes_more: bool = False, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(description=description, **kwargs)
        self._takes_more = takes_more
        self.add_argument(
            "--debug",
            action="store_true",
            help="show the traceback of every error (or OPUS_DEBUG=1)",
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse a command line; suggest the nearest option for an unknown one."""
        known, unknown = self.parse_known_args(args, namespace)
        if self._takes_more:
            known.others = unknown
            return known
        for text in unknown:
            option = text.split("=")[0]
            near = difflib.get_close_matches(option, self._option_string_actions, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            self.error(f"unknown argument {text}{hint}")
        if self.needs_config:
            known.config = self._one_config(known.config or [])
        return known

    def _one_config(self, given: list[str]) -> str:
        """Return the config of a command line, checked after its options."""
        if not given:
            self.error("no config is given: add one, such as configs/toy/opusv2-nano_toy.py")
        if len(given) > 1:
            self.error(f"the config is given twice, as {given[0]} and {given[1]}: give it once")
        try:
            return config_file(given[0])
        except argparse.ArgumentTypeError as error:
            self.error(f"argument CONFIG: {error}")

    def error(self, message: str) -> NoReturn:
        """Raise a ConfigError instead of printing the usage and exiting."""
        hint = "" if ": " in message else "; --help lists the arguments"
        raise ConfigError(message + hint)


def run_command(
    parser: argparse.ArgumentParser,
    function: Callable[[argparse.Namespace], int | None],
    arguments: Sequence[str] | None = None,
    interrupted: str = "interrupted; nothing was saved",
) -> int:
    """Parse a command line and run a command.

    Args:
        parser: The command's parser.
        function: Runs the command; may return an exit code.
        arguments: Command line; None uses that of the process.
        interrupted: What to print after Ctrl-C.

    Returns:
        The exit code, as of `run_entry_point`, or what `function` returned.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    codes: list[int | None] = []

    def run() -> None:
        codes.append(function(parser.parse_args(words)))

    code = run_entry_point(run, debug="--debug" in words, interrupted=interrupted)
    return code or (codes[0] if codes else None) or 0


class ConfigOptions(argparse.Action):
    """Action for `--cfg-options KEY=VALUE ...`, parsed like mmengine's DictAction, but strict."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        from mmengine.config import DictAction  # slow to import

        self._parse = DictAction(*args, **kwargs)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        """Add the options to those in the namespace."""
        for text in values:
            key, sign, _ = text.partition("=")
            if not sign or not key or key != key.strip(" ."):
                raise argparse.ArgumentError(self, f"'{text}' is not KEY=VALUE")
            try:
                self._parse(parser, namespace, [text], option)
            except (ValueError, AssertionError, IndexError, RecursionError) as error:
                raise argparse.ArgumentError(self, f"'{text}' is not KEY=VALUE: {error}") from None


class _Collect(argparse.Action):
    """Action that collects the values of several arguments in one list."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        if values is not None:  # None: no positional argument
            collected = getattr(namespace, self.dest, None) or []
            setattr(namespace, self.dest, [*collected, values])


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments CONFIG (or `--config CONFIG`) and `--cfg-options`."""
    if isinstance(parser, CommandParser):
        parser.needs_config = True
    parser.add_argument(
        "config", nargs="?", action=_Collect, metavar="CONFIG", help="config file, see configs/"
    )
    parser.add_argument("--config", action=_Collect, help=argparse.SUPPRESS)
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        default={},
        metavar="KEY=VALUE",
        help="config fields to override, e.g. batch_size=4 optim_wrapper.optimizer.lr=1e-4",
    )


def config_file(text: str) -> str:
    """Return an existing config file (argument type), relative to the current folder."""
    if Path(text).is_file():
        return text
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"config {text} is a folder: give a file")
    message = f"config {text} does not exist"
    if not Path(text).is_absolute():
        message += f" in {Path.cwd()}"
    inside = CHECKOUT / text
    if inside.is_file():
        raise argparse.ArgumentTypeError(f"{message}: give {inside}")
    names = [str(path) for path in (CHECKOUT / "configs").rglob("*.py")]
    stems = {Path(name).stem: name for name in names}
    near = difflib.get_close_matches(Path(text).stem, stems, n=1)
    hint = f"did you mean {stems[near[0]]}?" if near else f"see those in {CHECKOUT / 'configs'}"
    raise argparse.ArgumentTypeError(f"{message}: {hint}")


def number_from(low: float, kind: type[int] | type[float] = int) -> Callable[[str], Any]:
    """Return an argument type for finite numbers of at least `low`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value < float("inf"):
            word = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"'{text}' is not a {word} from {low:g}")
        return value

    return parse
