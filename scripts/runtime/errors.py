"""Errors a user can cause end in one sentence; everything else keeps its traceback."""

from __future__ import annotations

import dis
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, TracebackType

from models.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parents[2]
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

_WORKER_MARK = "Original Traceback"
_WORKER_FRAME = re.compile(r'File "(?P<file>[^"]+)", line \d+, in .*\n\s+(?P<source>.*)')


class ConfigError(UserError, ValueError):
    """A configuration or a command-line option asks for something that does not exist."""


class TrainingInterrupted(Exception):  # noqa: N818 - an event, not an error
    """Training was stopped by a signal; the message says what was saved."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )


def _raised_at(code: CodeType, offset: int) -> bool:
    """Whether the instruction at `offset` is a `raise` statement."""
    return dis.opname[code.co_code[offset]] == "RAISE_VARARGS"


def _in_project(filename: str) -> bool:
    path = Path(filename).resolve()
    return path.is_relative_to(PROJECT_ROOT) and ".venv" not in path.parts


def _raised_by_project(error: BaseException) -> bool:
    """Whether a `raise` statement of the project's own code made this error.

    Such a statement carries a message that was written for the user. The same exception type out
    of a library, or out of an operation in our code, is a defect whose traceback is wanted.
    """
    trace: TracebackType | None = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return _in_project(code.co_filename) and _raised_at(code, trace.tb_lasti)


def _worker_message(error: BaseException) -> str | None:
    """Message of a project error that a data-loading process re-raised with its traceback.

    torch's DataLoader hands an exception of a worker over as text: "Caught X in DataLoader worker
    process 0.", the traceback, and a last line "X: message".
    """
    text = str(error)
    if _WORKER_MARK not in text:
        return None
    frames = list(_WORKER_FRAME.finditer(text))
    if not frames:
        return None
    last = frames[-1]
    if not (_in_project(last["file"]) and last["source"].lstrip().startswith("raise")):
        return None
    closing = text[last.end() :]
    message = re.search(r"^[\w.]*(?:Error|Exception)\w*: (.*)\Z", closing, re.MULTILINE | re.DOTALL)
    return message[1] if message else None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def describe(error: BaseException) -> str | None:
    """The sentence to print for an error that a user can cause.

    Args:
        error: What an entry point caught.

    Returns:
        One line, or None if the error is a defect whose traceback should be shown.
    """
    for link in _chain(error):
        if not isinstance(link, (ValueError, RuntimeError, OSError)):
            continue
        from_worker = _worker_message(link)
        if from_worker is not None:
            return _one_line(from_worker)
        if _raised_by_project(link):
            return _one_line(str(link))
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{error.filename} does not exist"
    if isinstance(error, FileNotFoundError) and str(error):
        return _one_line(str(error))  # of a library: it has tried to read what it was told to
    if isinstance(error, PermissionError) and error.filename is not None:
        return f"{error.filename} may not be read or written by this user"
    return None


def run_entry_point(main: Callable[[], None], *, debug: bool) -> int:
    """Run a command's main function and turn what it raises into an exit code.

    Args:
        main: Does the command's work.
        debug: Show tracebacks of all errors (also switched on by OPUS_DEBUG=1).

    Returns:
        0, EXIT_USER_ERROR after an error of the user's (one line on standard error), or
        EXIT_INTERRUPTED. Defects are raised on, with their traceback.
    """
    rank = os.environ.get("RANK")
    name = Path(sys.argv[0]).name
    prefix = f"{name}: " if rank is None else f"{name} [rank {rank}]: "
    try:
        main()
    except TrainingInterrupted as stop:
        print(prefix + str(stop), file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print(prefix + "interrupted; nothing was saved", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        sentence = describe(error)
        if sentence is None:
            raise
        if debug or os.environ.get("OPUS_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        print(prefix + sentence, file=sys.stderr)
        return EXIT_USER_ERROR
    return 0
