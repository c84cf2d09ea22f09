from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from scripts.runtime.errors import ConfigError
from scripts.toy_runs import gallery
from scripts.toy_runs.gallery import PICTURES, Picture, find_model, main, make_picture
from scripts.visualization.command import command_parser

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "toy" / "opusv2-nano_toy.py"


def test_every_picture_is_shown_and_asks_for_what_exists():
    page = "".join((ROOT / name).read_text() for name in ("README.md", "docs/gallery.md"))
    for picture in PICTURES:
        command_parser().parse_args(
            ["--config", str(CONFIG), "--weights", "w", *picture.arguments.split()]
        )
        assert f"images/{picture.name}." in page, picture.name
        shown = [file for file in (ROOT / "docs" / "images").iterdir() if file.stem == picture.name]
        assert len(shown) == 1, picture.name
    assert sum(file.stat().st_size for file in (ROOT / "docs" / "images").iterdir()) < 5e6


def test_model_of_the_longer_run_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="make demo"):
        find_model(None, None)
    for config in (gallery.DEMO_CONFIG, gallery.LONG_CONFIG):
        folder = tmp_path / "work_dirs" / Path(config).stem
        folder.mkdir(parents=True)
        (folder / "epoch_1.pth").touch()
        (folder / "last_checkpoint").write_text(str(folder / "epoch_1.pth"))
        assert find_model(None, None) == (config, str(folder / "epoch_1.pth"))
    assert find_model(None, None, gallery.DEMO_FIRST)[0] == gallery.DEMO_CONFIG
    assert find_model("a.py", "b.pth") == ("a.py", "b.pth")
    with pytest.raises(ConfigError, match="belong together"):
        find_model("a.py", None)


def test_a_picture_is_reduced_and_a_failure_said(tmp_path, monkeypatch, capsys):
    def draw(arguments):
        folder = Path(arguments[arguments.index("--out") + 1])
        Image.new("RGB", (300, 200), (255, 0, 0)).save(folder / "00009_scene_12345678.png")
        return 0

    monkeypatch.setattr(gallery.command, "main", draw)
    picture = Picture("red", "--vis-gt", columns=150)
    path = make_picture(picture, "c.py", "w.pth", tmp_path)
    assert path == tmp_path / "red.jpg"
    assert Image.open(path).size == (150, 100)
    assert "python visualize.py --config c.py --weights w.pth --vis-gt" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="wrote 0 files"):
        make_picture(Picture("gone", "--vis-gt", "*.gif"), "c.py", "w.pth", tmp_path)
    monkeypatch.setattr(gallery.command, "main", lambda _: 2)
    arguments = ["--only", "sheet", "--config", str(CONFIG), "--weights", "w"]
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert "failed with exit code 2" in capsys.readouterr().err
