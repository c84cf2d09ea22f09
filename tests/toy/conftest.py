"""A small data set for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.toy_nuscenes.options import Options
from scripts.toy_nuscenes.scene import Scene, make_scene
from scripts.toy_nuscenes.writer import generate

SMALL = Options(scenes=2, samples=2, width=96, height=54, lidar_azimuths=180)


@pytest.fixture(scope="session")
def small_options() -> Options:
    return SMALL


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root with a training and a validation scene of two key frames each."""
    root = tmp_path_factory.mktemp("toy") / "nuscenes"
    assert generate(root, SMALL, workers=0)
    return root


@pytest.fixture(scope="session")
def small_scene() -> Scene:
    """Return the world of the first scene of that data set."""
    return make_scene(SMALL.seed, 0, SMALL.duration_s)
