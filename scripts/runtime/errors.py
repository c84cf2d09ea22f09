"""Error reporting: one sentence for errors that a user can correct, a traceback for all others."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from models.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
# Set by scripts/runtime/torchrun.py to its start time in seconds. torchrun.py prints the error
# sentences of its processes, each once.
LAUNCHED = "OPUS_LAUNCHED"
RESTARTS = "OPUS_RESTARTS"  # number of restarts so far

# Operating-system errors about a file that the user can correct, with their sentences.
_ABOUT_A_FILE = {
    errno.ENOENT: "{0} does not exist (relative paths start at {1}): correct the path",
    errno.EACCES: "{0} may not be read or written by this user: change its permissions or the path",
    errno.EPERM: "{0} may not be changed by this user: change its permissions or the path",
    errno.EROFS: "{0} is on a read-only file system: choose a path elsewhere",
    errno.EISDIR: "{0} is a folder, a file is needed: correct the path",
    errno.ENOTDIR: "{0} or a part of its path is a file, a folder is needed: correct the path",
    errno.EEXIST: "{0} exists and is not a folder: choose another path, or move it away",
    errno.ENOTEMPTY: "{0} is not empty: choose another path, or move it away",
    errno.ENAMETOOLONG: "the name {0} is too long for the file system: choose a shorter one",
    errno.ELOOP: "{0} is a symbolic link that leads to itself: correct the link",
    errno.ETXTBSY: "{0} is in use: try again later",
}
# Errors that do not refer to a file.
_ABOUT_THE_MACHINE = {
    errno.ENOSPC: "no space is left on the disk{0}: free some, or choose a path elsewhere",
    errno.EDQUOT: "the disk quota is exceeded{0}: free some space, or choose a path elsewhere",
    errno.EMFILE: "too many files are open{0}: raise `ulimit -n`, or use fewer workers",
    errno.ENFILE: "too many files are open on this machine{0}: use fewer workers",
}


class ConfigError(UserError, ValueError):
    """A configuration or a command-line option is invalid."""


class LostProcessError(UserError, RuntimeError):
    """Another process of a distributed run has ended; its own message states the reason."""


LOST_PROCESS = "another process of the run has ended"
# Messages of gloo and NCCL if another process ends during a collective operation.
_LOST_CONNECTION = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "remote process exited",
    "NCCL communicator was aborted",
)


def is_lost_connection(error: BaseException) -> bool:
    """Return whether a collective operation failed because another process ended."""
    text = str(error)
    is_collective = type(error).__name__.startswith("Dist") or "gloo" in text or "NCCL" in text
    return is_collective and any(words in text for words in _LOST_CONNECTION)


class TrainingInterrupted(Exception):  # noqa: N818 - an event, not an error
    """Training was stopped by a signal; the message names the saved checkpoint."""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its explicit causes, outermost first."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _describe_os_error(error: OSError) -> str | None:
    """Return the sentence for an operating-system error that the user can correct."""
    # In `rename(a, b)` the second file is the one that the user specified.
    name = error.filename2 or error.filename
    path = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else ""
    if error.errno in _ABOUT_THE_MACHINE:
        return _ABOUT_THE_MACHINE[error.errno].format(f" ({path})" if path else "")
    if error.errno in _ABOUT_A_FILE and path:
        return _ABOUT_A_FILE[error.errno].format(path, Path.cwd())
    return None


def describe(error: BaseException) -> str | None:
    """Return the sentence to print for an error that the user can correct.

    Args:
        error: Error caught by an entry point.

    Returns:
        One line; None if the error is a defect whose traceback should be shown.
    """
    for link in _causes(error):
        if isinstance(link, UserError):
            return link.sentence
    return _describe_os_error(error) if isinstance(error, OSError) else None


def _shows_tracebacks(debug: bool) -> bool:
    return debug or os.environ.get("OPUS_DEBUG", "0") not in ("", "0")


def run_entry_point(
    main: Callable[[], None], *, debug: bool, interrupted: str = "interrupted; nothing was saved"
) -> int:
    """Run a command's main function and convert its errors to an exit code.

    Args:
        main: Runs the command.
        debug: Show tracebacks of all errors (also enabled by OPUS_DEBUG=1).
        interrupted: What to print after Ctrl-C.

    Returns:
        0, EXIT_USER_ERROR after an error that the user can correct (one line on standard error), or
        EXIT_INTERRUPTED. All other errors are re-raised.
    """
    try:
        main()
    except TrainingInterrupted as stop:
        print(_prefix() + str(stop), file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print(_prefix() + interrupted, file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        sentence = describe(error)
        if sentence is None:
            raise
        if _shows_tracebacks(debug):
            traceback.print_exc()
        if not _left_to_launcher(sentence):
            print(_prefix() + sentence, file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def _prefix() -> str:
    name, rank = Path(sys.argv[0]).name, os.environ.get("RANK")
    return f"{name}: " if rank is None else f"{name} [rank {rank}]: "


def _left_to_launcher(sentence: str) -> bool:
    """Pass a sentence to the launcher of this process in torchrun's error file, if there is one."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not os.environ.get(LAUNCHED) or not path or "RANK" not in os.environ:
        return False
    try:
        Path(path).write_text(json.dumps({"message": sentence, "timestamp": int(time.time())}))
    except OSError:
        return False
    return True
