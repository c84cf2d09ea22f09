"""Versions and identities for reports."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
# Distributions whose version can affect a result.
REPORTED = (
    "torch",
    "torchvision",
    "numpy",
    "mmengine",
    "mmcv",
    "mmdet",
    "mmdet3d",
    "nuscenes-devkit",
    "spconv",
    "opencv-python-headless",
    "pillow",
    "scipy",
)


def distribution_version(name: str) -> str | None:
    """Return the installed version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed distributions that can affect a result."""
    found = {"python": platform.python_version()}
    for name in REPORTED:
        version = distribution_version(name)
        if version is not None:
            found[name] = version
    if "torch" in found:
        import torch  # takes seconds: imported only where needed

        # The distribution's version may lack the build suffix, "+cpu" or "+cu130".
        found["torch"] = torch.__version__
    return found


def git_commit() -> str | None:
    """Return the commit of the source tree, with '+changes' if files differ; None without git."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(PROJECT_ROOT), *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
    ).stdout.strip()
