from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.build import env_report

ROOT = Path(__file__).resolve().parents[2]
SHELL_FILES = [
    "scripts/build/setup_env.sh",
    "scripts/runtime/torchrun.sh",
    "dist_train.sh",
    "dist_val.sh",
    "scripts/slurm/train.sbatch",
    ".ci/run",
]


@pytest.mark.parametrize("name", SHELL_FILES)
def test_shell_files_parse(name: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / name)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(ROOT / name)], check=True)


def requirement_lines(name: str) -> list[str]:
    text = (ROOT / "requirements" / name).read_text()
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def distribution(requirement: str) -> str:
    return re.split(r"[<>=!~;\[ ]", requirement)[0].lower().replace("_", "-")


@pytest.mark.parametrize("python", ["310", "311", "312"])
@pytest.mark.parametrize("name", ["build.txt", "packages.txt", "dev.txt", "onnx.txt"])
def test_every_requirement_is_locked(name: str, python: str) -> None:
    locked = {
        distribution(line): line.split("==")[1]
        for line in requirement_lines(f"lock-py{python}.txt")
    }
    exempt = {"wheel", "opencv-python-headless"}
    for line in requirement_lines(name):
        if distribution(line) in exempt:
            continue
        assert distribution(line) in locked, line
        if "==" in line:
            assert line.split("==")[1] == locked[distribution(line)]


def test_exact_requirements_are_what_is_installed() -> None:
    from importlib import metadata

    for name in ("torch.txt", "mmcv.txt", "openmm.txt", "packages.txt"):
        for line in requirement_lines(name):
            if "==" in line:
                wanted = line.split("==")[1]
                assert metadata.version(distribution(line)).split("+")[0] == wanted


def test_setup_says_what_is_wrong_with_its_options(tmp_path: Path) -> None:
    env = {**os.environ, "OPUS_PYTHON": "no-such-python"}
    # A copy without .venv, so that nothing of the real one is touched.
    for folder in ("scripts", "requirements"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    done = subprocess.run(
        ["bash", str(tmp_path / "scripts/build/setup_env.sh")],
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode != 0
    assert "no Python 3.10 - 3.12" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_progress_filter_keeps_all_in_the_log_and_shows_milestones(tmp_path: Path) -> None:
    lines = [f"[{i}/200] c++ file_{i}.cpp" for i in range(1, 201)]
    lines += ["a line of no interest", "Successfully installed thing-1.0"]
    log = tmp_path / "build.log"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts/build/setup_progress.py"),
            "--title",
            "t",
            "--log",
            str(log),
        ],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert log.read_text().splitlines() == lines
    shown = done.stdout.splitlines()
    assert len(shown) < len(lines) / 4
    assert any("compiling [200/200]" in line for line in shown)
    assert any("Successfully installed" in line for line in shown)
    assert not any("no interest" in line for line in shown)


def test_env_report_names_versions_and_what_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    code = env_report.main([])
    report = capsys.readouterr().out
    assert code == 0, report
    for word in ("torch", "mmcv's operations", "native extension", "ray_cast", "libjpeg-turbo"):
        assert word in report


def test_makefile_help_lists_the_commands() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in ("make setup", "make test", "make demo", "make toy-train", "make clean"):
        assert command in done.stdout
