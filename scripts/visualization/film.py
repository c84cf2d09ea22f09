"""Film of a scene: H.264 in MP4, which every browser plays, or GIF.

Key frames are half a second apart. Between them the camera moves on with the vehicle: each picture
shows the nearest key frame in time, seen from the vehicle's position at that moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp
from tqdm import tqdm

from scripts.runtime.errors import ConfigError
from scripts.visualization.job import Job
from scripts.visualization.sample_view import Moment, SampleView
from scripts.visualization.sheet import compose_sheet

HOLD_S = 0.5
"""Time that a sample without a successor is shown (the interval of nuScenes' key frames)."""
MAX_GAP_S = 1.2
"""Samples further apart are shown one after the other, without motion between them."""
ORBIT_S = 12.0
"""Time of one turn of the orbiting camera."""

# Codec, pixel format and further options of ffmpeg. Browsers need yuv420p; with faststart a film
# starts before it is fully loaded. A GIF needs two passes: first the colours of the whole film,
# then the pictures in these colours.
_CODECS = {
    "mp4": ("libx264", "yuv420p", ("-crf", "19", "-preset", "medium", "-movflags", "+faststart")),
    "gif": (
        "gif",
        "pal8",
        ("-vf", "split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=bayer", "-loop", "0"),
    ),
}


@dataclass(frozen=True)
class Shot:
    """One picture of a film.

    Attributes:
        number: index of the shown sample within the film.
        motion: [4, 4] from the ego frame at the picture's time to the sample's ego frame.
        turn: turn of the orbiting camera, as a share of the full circle.
    """

    number: int
    motion: NDArray[np.float64]
    turn: float


def plan_shots(moments: Sequence[Moment], fps: float, orbits: bool = False) -> list[Shot]:
    """Return the pictures of a film in real time.

    Args:
        moments: moments of the samples, in the order of the film.
        fps: pictures per second.
        orbits: whether the camera orbits; a single sample then lasts for one turn.
    """
    gaps = np.diff([moment.time_us for moment in moments]) * 1e-6
    drives = (gaps > 0) & (gaps <= MAX_GAP_S)
    starts = np.concatenate([[0.0], np.cumsum(np.where(drives, gaps, HOLD_S))])
    length = ORBIT_S if orbits and len(moments) == 1 else float(starts[-1]) + HOLD_S
    shots = []
    for time in np.arange(max(1, round(length * fps))) / fps:
        # A picture at a key frame must not be rounded to the time before it.
        before = int(np.searchsorted(starts, time + 1e-9, side="right")) - 1
        number, motion = before, np.eye(4)
        if before < len(drives) and drives[before]:
            share = float((time - starts[before]) / gaps[before])
            number = before + int(share >= 0.5)
            pose = _between(moments[before].ego2global, moments[before + 1].ego2global, share)
            motion = np.linalg.inv(moments[number].ego2global) @ pose
        shots.append(Shot(number, motion, float(time) / ORBIT_S))
    return shots


def _between(
    first: NDArray[np.float64], second: NDArray[np.float64], share: float
) -> NDArray[np.float64]:
    """Return the interpolated pose [4, 4], `share` in [0, 1] of the way from first to second."""
    rotations = Rotation.from_matrix(np.stack([first[:3, :3], second[:3, :3]]))
    pose = np.eye(4)
    pose[:3, :3] = Slerp([0.0, 1.0], rotations)(share).as_matrix()
    pose[:3, 3] = (1 - share) * first[:3, 3] + share * second[:3, 3]
    return pose


def write(job: Job) -> list[Path]:
    """Write one film per scene.

    Raises:
        ConfigError: ffmpeg is not installed.
    """
    files = []
    for scene, indices in job.clips():
        path = job.file(f"{scene}_{job.options.view}.{job.format}")
        shots = plan_shots(
            [job.source.moment(index) for index in indices], job.fps, job.options.view == "orbit"
        )
        _shoot(job, indices, shots, path)
        size = path.stat().st_size / 2**20
        job.report(f"{path}  ({len(indices)} samples, {len(shots)} pictures, {size:.1f} MiB)")
        files.append(path)
    return files


def _shoot(job: Job, indices: Sequence[int], shots: Sequence[Shot], path: Path) -> None:
    """Draw and encode; an incomplete film never gets the final name."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    writer: Any = None
    view: SampleView | None = None
    shown = -1
    try:
        for shot in tqdm(shots, desc=path.name, unit="picture"):
            if view is None or shot.number != shown:
                view, shown = job.source.view(indices[shot.number]), shot.number
            picture = _picture(job, view, shot)
            if writer is None:
                partial.parent.mkdir(parents=True, exist_ok=True)
                height, width = picture.shape[:2]
                writer = _open_writer(partial, (width, height), job)
                writer.send(None)
            writer.send(picture)
        writer.close()
        partial.replace(path)
    finally:
        if writer is not None:
            writer.close()
        partial.unlink(missing_ok=True)


def _picture(job: Job, view: SampleView, shot: Shot) -> NDArray[np.uint8]:
    """Return the sheet of one moment: uint8 [H, W, 3], with even sides as H.264 requires."""
    moved = replace(view, ego2grid=view.ego2grid @ shot.motion)
    sheet = compose_sheet(moved, replace(job.options, turn=shot.turn, wide=True)).image
    even = sheet.crop((0, 0, sheet.width // 2 * 2, sheet.height // 2 * 2))
    return np.ascontiguousarray(even)


def _open_writer(path: Path, size: tuple[int, int], job: Job) -> Any:
    """Start ffmpeg as a generator that receives pictures."""
    try:
        from imageio_ffmpeg import write_frames
    except ImportError as error:
        raise ConfigError(
            f"--format {job.format} needs the package imageio-ffmpeg: run make setup, or "
            "python -m pip install imageio-ffmpeg"
        ) from error
    codec, pixels, options = _CODECS[job.format]
    return write_frames(
        str(path),
        size,
        fps=job.fps,
        codec=codec,
        pix_fmt_out=pixels,
        quality=None,  # imageio's own scale; the options set the codec's quality
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=list(options),
    )
