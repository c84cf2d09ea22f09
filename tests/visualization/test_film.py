from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from scripts.visualization.film import HOLD_S, MAX_GAP_S, ORBIT_S, plan_shots
from scripts.visualization.sample_view import Moment
from visualize import main

SMALL = ["--scale", "0.25"]


def moment(seconds: float, x: float, yaw_deg: float = 0.0) -> Moment:
    pose = np.eye(4)
    c, s = np.cos(np.deg2rad(yaw_deg)), np.sin(np.deg2rad(yaw_deg))
    pose[:2, :2] = [[c, -s], [s, c]]
    pose[:3, 3] = [1000.0 + x, 2000.0, 0.0]
    return Moment("scene", int(seconds * 1e6), pose)


def test_the_vehicle_drives_on_between_key_frames():
    shots = plan_shots([moment(0.0, 0.0), moment(0.5, 10.0)], fps=10)
    # 0.5 s of driving and half a second on the last sample.
    assert len(shots) == 10
    ahead = [shot.motion[0, 3] for shot in shots]
    # Up to the middle the first sample is shown from further and further ahead, then the second
    # from behind, nearer and nearer.
    assert [shot.number for shot in shots] == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert ahead == pytest.approx([0, 2, 4, -4, -2, 0, 0, 0, 0, 0], abs=1e-6)
    assert all(np.allclose(shot.motion[1:3, 3], 0) for shot in shots)


def test_a_turning_vehicle_turns_the_view():
    shots = plan_shots([moment(0.0, 0.0), moment(0.5, 0.0, yaw_deg=40.0)], fps=10)
    turns = [np.rad2deg(np.arctan2(shot.motion[1, 0], shot.motion[0, 0])) for shot in shots]
    assert turns == pytest.approx([0, 8, 16, -16, -8, 0, 0, 0, 0, 0], abs=1e-6)


def test_samples_far_apart_are_shown_one_after_the_other():
    gap = MAX_GAP_S + 1.0
    shots = plan_shots([moment(0.0, 0.0), moment(gap, 50.0), moment(gap + 0.5, 55.0)], fps=8)
    assert len(shots) == round(8 * (HOLD_S + 0.5 + HOLD_S))
    assert all(np.array_equal(shot.motion, np.eye(4)) for shot in shots if shot.number == 0)
    assert max(abs(shot.motion[0, 3]) for shot in shots) <= 2.5
    # The same holds for samples in any order.
    backwards = plan_shots([moment(0.5, 5.0), moment(0.0, 0.0)], fps=8)
    assert [shot.number for shot in backwards] == [0] * 4 + [1] * 4


def test_a_single_sample_is_orbited_once():
    shots = plan_shots([moment(0.0, 0.0)], fps=4, orbits=True)
    assert len(shots) == 4 * ORBIT_S
    assert [shots[0].turn, shots[-1].turn] == pytest.approx([0, 1 - 1 / len(shots)])
    assert len(plan_shots([moment(0.0, 0.0)], fps=4)) == 4 * HOLD_S


def boxes(content: bytes) -> list[bytes]:
    """Return the names of an MP4 file's outer boxes, in order (ISO 14496-12)."""
    names, at = [], 0
    while at < len(content):
        length, name = struct.unpack(">I4s", content[at : at + 8])
        names.append(name)
        at += length
    return names


def test_mp4_is_what_browsers_play(config, tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    out = tmp_path / "films"
    arguments = ["--config", str(config), "--vis-gt", "--format", "mp4", "--out", str(out)]
    assert main([*arguments, *SMALL, "--fps", "4"]) == 0
    (path,) = out.iterdir()
    assert path.name == "scene-0916_chase.mp4"
    order = boxes(path.read_bytes())
    assert order.index(b"moov") < order.index(b"mdat"), "it cannot start before it is loaded"
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    assert meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p") and meta["fps"] == 4
    width, height = meta["size"]
    assert width % 2 == 0 and height % 2 == 0
    frames = [np.frombuffer(f, np.uint8).reshape(height, width, 3).astype(int) for f in reader]
    # Two samples half a second apart, 10 m of driving, and half a second at the end.
    assert len(frames) == 4
    for frame in frames:
        road = np.abs(frame - (0, 207, 191)).max(axis=-1) < 40
        assert road.mean() > 0.04
    moving, standing = (np.abs(frames[i + 1] - frames[i]).mean() for i in (0, 2))
    assert moving > 4 * standing


def test_gif_of_an_orbit_loops_and_turns(config, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    out = tmp_path / "films"
    command = ["--config", str(config), "--vis-gt", "--format", "gif", "--view", "orbit"]
    assert main([*command, "--index", "1", "--fps", "1", "--out", str(out), *SMALL]) == 0
    (path,) = out.iterdir()
    with Image.open(path) as film:
        assert film.n_frames == 12 and film.info["loop"] == 0
        pictures = []
        for number in range(film.n_frames):
            film.seek(number)
            pictures.append(np.asarray(film.convert("RGB")).astype(int))
    steps = [np.abs(b - a).mean() for a, b in pairwise(pictures)]
    assert min(steps) > 1, "the camera stands still"
    opposite = np.abs(pictures[6] - pictures[0]).mean()
    assert opposite > 1 and max(steps) < 100


@pytest.mark.parametrize("fps", ["0", "240"])
def test_impossible_rates_are_refused(fps, config, tmp_path, capsys):
    command = ["--config", str(config), "--vis-gt", "--format", "mp4", "--out", str(tmp_path)]
    assert main([*command, "--fps", fps]) == 2
    assert f"--fps {fps}" in capsys.readouterr().err
