"""Runs of the command: equal bytes, no repeated work, and incomplete data are detected."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scripts.toy_nuscenes import command as make_toy_nuscenes
from scripts.toy_nuscenes import writer
from scripts.toy_nuscenes.layout import make_layout
from scripts.toy_nuscenes.options import Options
from scripts.toy_nuscenes.recipes import make_recipe
from scripts.toy_nuscenes.writer import DataSetError, generate, place_scenes


def digest(root: Path) -> dict[str, str]:
    """Return the hash of each file by its path."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def test_an_interrupted_run_is_no_data_set_and_can_be_completed_by_workers(
    small_root: Path, small_options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes equal an undisturbed run.

    This process writes the first scene and crashes; worker processes write the rest.
    """
    root = tmp_path / "toy"
    real = writer.generate_scene

    def fails_on_second(
        root: Path, options: Options, names: object, *rest: object, **more: object
    ) -> None:
        if names.index == 1:  # type: ignore[attr-defined]
            raise RuntimeError("power cut")
        real(root, options, names, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "generate_scene", fails_on_second)
    with pytest.raises(RuntimeError, match="power cut"):
        generate(root, small_options, workers=0)
    assert not (root / "v1.0-mini").exists()
    assert json.loads((root / "toy_nuscenes.json").read_text())["complete"] is False
    monkeypatch.undo()
    finished: list[int] = []
    assert generate(root, small_options, workers=2, progress=finished.append)
    assert sum(finished) == 4
    assert digest(root) == digest(small_root)


def test_a_complete_data_set_is_left_alone(small_root: Path, small_options: Options) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_root.rglob("*")}
    assert not generate(small_root, small_options, workers=0)
    assert before == {path: path.stat().st_mtime_ns for path in small_root.rglob("*")}


def test_other_options_are_refused_without_overwrite(
    small_root: Path, small_options: Options
) -> None:
    other = dataclasses.replace(small_options, seed=5)
    before = digest(small_root)
    with pytest.raises(DataSetError, match=r"seed is 0 there, but 5 was requested.*--overwrite"):
        generate(small_root, other, workers=0)
    assert digest(small_root) == before


def test_foreign_folders_are_refused(tmp_path: Path, small_options: Options) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(DataSetError, match="was not made by this command"):
        generate(tmp_path, small_options, workers=0, overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenes", "0"], "--scenes must lie between"),
        (["--samples", "-1"], "--samples must lie between"),
        (["--image-size", "8x8"], "--image-size must be at least"),
        (["--workers", "-2"], "'-2' is not a whole number from 0"),
        (["--jpeg-quality", "101"], "--jpeg-quality must lie"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_toy_nuscenes.main(["--out", str(tmp_path / "toy"), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
    assert not (tmp_path / "toy").exists()


def test_scenes_lie_apart_on_their_map() -> None:
    layouts = [make_layout(make_recipe(0, k), 1.0) for k in range(12)]
    places = place_scenes(layouts)
    corners = [
        (place, layout.lower + shift, layout.upper + shift)
        for layout, (place, shift) in zip(layouts, places, strict=True)
    ]
    for k, (place, low, high) in enumerate(corners):
        assert (low >= 0).all()
        for other, low2, high2 in corners[:k]:
            assert place != other or (high <= low2).any() or (high2 <= low).any()
    assert {place for place, _, _ in corners} == {0, 1}
    assert np.isfinite([low for _, low, _ in corners]).all()


def test_a_data_set_from_before_surroundocc_gets_its_labels_and_nothing_else(
    small_root: Path, small_options: Options, tmp_path: Path
) -> None:
    """Complete and incomplete data sets without these labels end like a new one."""
    root = tmp_path / "toy"
    shutil.copytree(small_root, root)
    shutil.rmtree(root / "surroundocc")
    kept = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert generate(root, small_options, workers=0)
    assert digest(root) == digest(small_root)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert not generate(root, small_options, workers=0)
