"""Write results as files for other programs.

Legend: n occupied voxels, F faces between an occupied and a free voxel, X, Y, Z voxels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scripts.runtime.atomic_write import check_file_target, write_atomically
from scripts.runtime.errors import ConfigError
from scripts.visualization.palette import class_colours
from scripts.visualization.surface import surface_faces

if TYPE_CHECKING:
    from scripts.inference.result import OccupancyResult
    from scripts.prediction.frames import Frame

SUFFIXES = (".npz", ".ply", ".png", ".html", ".rrd")
# Options of `OccupancyResult.draw` that apply to files other than pictures.
_STYLE_OF: Mapping[str, Collection[str]] = {".npz": (), ".ply": ("palette",)}
# Two triangles of a face with corners in cyclic order.
_TRIANGLES = np.array([[0, 1, 2], [0, 2, 3]], dtype=np.int32)


def save_result(
    result: OccupancyResult,
    path: Path,
    *,
    dense: bool,
    mesh: bool,
    frame: Frame | None,
    style: Mapping[str, Any],
) -> Path:
    """Write a result; see `OccupancyResult.save`."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path} has an unknown format: end its name in {', '.join(SUFFIXES)}")
    if dense and suffix != ".npz":
        raise ConfigError(f"dense=True is an option of .npz files, not of {path}: leave it out")
    if mesh and suffix != ".ply":
        raise ConfigError(f"mesh=True is an option of .ply files, not of {path}: leave it out")
    check_file_target("file", path)
    for name in style:
        if name not in _STYLE_OF.get(suffix, style):
            raise ConfigError(f"{suffix} files have no option '{name}': leave it out of {path}")
    if suffix == ".npz":
        return write_npz(result, path, dense=dense)
    palette = str(style.get("palette", "field"))
    if suffix == ".ply":
        return write_ply(result, path, mesh=mesh, palette=palette)
    from scripts.inference.pictures import VIEWER_SUFFIXES, draw_result, write_page

    if suffix in VIEWER_SUFFIXES:
        return write_page([result], path, [frame], **style)
    image = draw_result(result, frame, style)
    return write_atomically(path, lambda file: image.save(file, format="PNG", compress_level=2))


def write_npz(result: OccupancyResult, path: Path, *, dense: bool) -> Path:
    """Write occupied voxels, or a label grid, compressed."""
    grid = result.grid
    if dense:
        arrays: dict[str, npt.NDArray[Any]] = {"semantics": result.dense()}
    else:
        # Sorted voxels compress to a third.
        order = np.lexsort(result.coords.T[::-1])
        arrays = {
            "coords": result.coords[order].astype(np.uint16),
            "labels": result.labels[order].astype(np.uint8),
            "scores": result.scores[order],
            "pc_range": np.asarray(grid.pc_range),
            "voxel_size": np.asarray(grid.voxel_size),
            "grid_shape": np.asarray(grid.shape),
            "grid_frame": np.asarray(grid.frame),
            "class_names": np.asarray(grid.class_names),
            "time_s": np.asarray(result.time_s),
            "ego2global": result.ego2global,
            "ego2grid": result.ego2grid,
        }

    def write(file: Path) -> None:
        with open(file, "wb") as stream:
            np.savez_compressed(stream, **arrays)

    return write_atomically(path, write)


def write_ply(
    result: OccupancyResult, path: Path, *, mesh: bool = False, palette: str = "field"
) -> Path:
    """Write coloured points or faces, binary; see `OccupancyResult.save`."""
    from plyfile import PlyData, PlyElement

    colours = class_colours(result.grid.class_names, palette)
    if mesh:
        parts = _mesh(result, colours)
    else:
        parts = {"vertex": _points(result, colours)}
    elements = [PlyElement.describe(rows, name) for name, rows in parts.items()]
    grid = result.grid
    size = " x ".join(f"{length:g}" for length in grid.voxel_size)
    comments = [f"metres in the {grid.frame} frame, voxels of {size}"]
    comments += [f"label {i} {name}" for i, name in enumerate(grid.class_names)]
    content = PlyData(elements, byte_order="<", comments=comments)

    def write(file: Path) -> None:
        with open(file, "wb") as stream:
            content.write(stream)

    return write_atomically(path, write)


def _points(result: OccupancyResult, colours: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    rows = _vertices(result.centres(), colours[result.labels], [("label", "u1"), ("score", "f4")])
    rows["label"], rows["score"] = result.labels, result.scores
    return rows


def _mesh(result: OccupancyResult, colours: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    """Return the faces without shared corners.

    Most programs show the colours of corners, not of faces.
    """
    dense = result.dense()
    cells, codes = surface_faces(dense != result.grid.empty_label)
    corners = cells[:, None, :] + _face_corners()[codes]  # [F, 4, 3] in voxels
    places = result.grid.low + corners * np.asarray(result.grid.voxel_size)
    labels = dense[tuple(cells.T)]
    vertices = _vertices(places.reshape(-1, 3), np.repeat(colours[labels], 4, axis=0), [])
    faces = np.zeros(2 * len(cells), dtype=[("vertex_indices", "<i4", (3,)), ("label", "u1")])
    first = 4 * np.arange(len(cells), dtype=np.int32)
    faces["vertex_indices"] = (first[:, None, None] + _TRIANGLES).reshape(-1, 3)
    faces["label"] = np.repeat(labels, 2)
    return {"vertex": vertices, "face": faces}


def _face_corners() -> npt.NDArray[np.int64]:
    """Return the corners [6, 4, 3] of a voxel's faces, in voxels.

    They are in counter-clockwise order as seen from outside. Faces are numbered as in
    `scripts.visualization.surface.surface_faces`.
    """
    around = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    faces = np.zeros((6, 4, 3), dtype=np.int64)
    for axis in range(3):
        for positive in (0, 1):
            corners = faces[2 * axis + positive]
            corners[:, axis] = positive
            corners[:, [(axis + 1) % 3, (axis + 2) % 3]] = around if positive else around[::-1]
    return faces


def _vertices(
    places: npt.NDArray[np.float64],
    colours: npt.NDArray[np.uint8],
    more: Sequence[tuple[str, str]],
) -> npt.NDArray[Any]:
    names = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1")]
    rows = np.zeros(len(places), dtype=[*names, ("blue", "u1"), *more])
    for i, name in enumerate("xyz"):
        rows[name] = places[:, i]
    for i, name in enumerate(("red", "green", "blue")):
        rows[name] = colours[:, i]
    return rows
