"""Run and measure commands in separate processes; skip them while their inputs are unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from models.errors import UserError
from scripts.runtime.atomic_write import write_json
from scripts.runtime.errors import ConfigError
from scripts.runtime.parent_process import end_with_parent

ROOT = Path(__file__).resolve().parents[2]


class StepFailed(UserError, RuntimeError):  # noqa: N818 - named like an event
    """A command of the demo ended with an error, which it printed."""


@dataclass
class Record:
    """Key and cost of the last run of a step."""

    key: str
    seconds: float
    peak_memory_mb: float


@dataclass
class Steps:
    """Run commands, measure them, and record the keys of their inputs.

    Attributes:
        path: File of the records.
        records: Last complete run of each step, by name.
    """

    path: Path
    records: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Steps:
        """Read the records of earlier calls (none if there is no such file)."""
        records = {}
        if path.is_file():
            try:
                for name, record in json.loads(path.read_text()).items():
                    records[name] = Record(**record)
            except (ValueError, TypeError, AttributeError) as error:
                raise ConfigError(f"{path} is damaged ({error}): remove it") from error
        return cls(path, records)

    def run(self, name: str, command: Sequence[str], key: str, outputs: Sequence[Path]) -> bool:
        """Run a step unless its outputs exist and its key is unchanged.

        Returns:
            Whether the command ran.

        Raises:
            StepFailed: The command ended with an error, or an output is missing.
        """
        record = self.records.get(name)
        if record is not None and record.key == key and all(out.exists() for out in outputs):
            print(f"== {name}: up to date", flush=True)
            return False
        print(f"== {name}: {shlex.join(command)}", flush=True)
        seconds, memory_mb, code = measure([sys.executable, *command])
        if code:
            raise StepFailed(f"step '{name}' failed with exit code {code}")
        for out in outputs:
            if not out.exists():
                raise StepFailed(f"step '{name}' did not write {out}")
        self.records[name] = Record(key, seconds, memory_mb)
        write_json(self.path, {step: asdict(entry) for step, entry in self.records.items()}, 2)
        print(f"== {name}: {seconds:.0f} s, peak memory {memory_mb:.0f} MB", flush=True)
        return True


def measure(command: Sequence[str]) -> tuple[float, float, int]:
    """Run a command; return wall time in s, peak memory of its largest process in MB, exit code.

    Raises:
        KeyboardInterrupt: This process received SIGTERM, which was passed on to the command.
    """
    start = time.monotonic()
    process = subprocess.Popen(command, preexec_fn=end_with_parent)  # if this process is killed
    terminated = []

    def terminate(*_: object) -> None:
        terminated.append(True)
        process.terminate()

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        while True:
            try:
                _, status, usage = os.wait4(process.pid, 0)
                break
            except KeyboardInterrupt:  # the step received the same signal and stops
                print("waiting for the step to stop", flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    process.returncode = os.waitstatus_to_exitcode(status)
    if terminated:
        raise KeyboardInterrupt
    return time.monotonic() - start, usage.ru_maxrss * 1024 / 1e6, process.returncode


def hash_of(*parts: str | bytes) -> str:
    """Return a short hash of texts or contents of files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def source_key(folders: Sequence[str]) -> str:
    """Return the hash of the source files below some folders (or of single files)."""
    suffixes = (".py", ".cpp", ".h", ".cu", ".cuh")
    files: list[Path] = []
    for name in folders:
        path = ROOT / name
        found = [path] if path.is_file() else path.rglob("*")
        files += [file for file in found if file.suffix in suffixes]
    return hash_of(*(file.read_bytes() for file in sorted(files)))


PRINT_CONFIG = """
import sys
from scripts.runtime.config import load_config
print(load_config(sys.argv[1]).pretty_text)
"""


def config_key(config: str) -> str:
    """Return the hash of a config with its `_base_` files merged.

    The config is read in a separate process to keep this one small: the peak memory that Linux
    reports for a started process is never below that of its parent.
    """
    command = [sys.executable, "-c", PRINT_CONFIG, config]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"config {config} cannot be read: {reason}")
    return hash_of(done.stdout)
