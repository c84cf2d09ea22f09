"""Results as arrays, files and pictures, read by other libraries than the writers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from loaders.predictions import load_prediction
from models.inference import Grid, OccupancyResult, write_page
from scripts.inference.pictures import view_of
from scripts.runtime.errors import ConfigError
from scripts.visualization.palette import class_colours
from scripts.visualization.sample_view import panorama
from tests.inference.conftest import rig_frame

NAMES = ("car", "driveable_surface", "manmade")
GRID = Grid((-4.0, -3.0, -1.0, 4.0, 3.0, 1.4), (0.4, 0.4, 0.6), (20, 15, 4), "ego", NAMES)


def make_result(seed: int = 0, number: int = 300) -> OccupancyResult:
    generator = np.random.default_rng(seed)
    places = generator.choice(20 * 15 * 4, number, replace=False)
    coords = np.stack(np.unravel_index(places, GRID.shape), axis=1).astype(np.int64)
    labels = generator.integers(0, 3, number)
    scores = generator.uniform(0.25, 1, number).astype(np.float32)
    return OccupancyResult(coords, labels, scores, GRID, name="000123", time_s=1.5)


def test_dense_grid_and_centres() -> None:
    result = make_result()
    dense = result.dense()
    assert dense.shape == (20, 15, 4) and dense.dtype == np.uint8
    assert (dense != 3).sum() == len(result) == 300
    for (x, y, z), label, centre in zip(
        result.coords, result.labels, result.centres(), strict=True
    ):
        assert dense[x, y, z] == label
        np.testing.assert_allclose(
            centre, [-4 + 0.4 * (x + 0.5), -3 + 0.4 * (y + 0.5), -1 + 0.6 * (z + 0.5)]
        )
    assert repr(result).startswith("OccupancyResult(000123: 300 voxels of (20, 15, 4)")


@pytest.mark.parametrize("dense", [False, True])
def test_npz_files_are_predictions_that_can_be_scored(tmp_path: Path, dense: bool) -> None:
    result = make_result()
    path = result.save(tmp_path / "made" / "a.npz", dense=dense)
    found = load_prediction(path, GRID.shape, GRID.empty_label)
    grid = np.full(GRID.shape, 3)
    grid[tuple(found["pred_coords"].T)] = found["pred_labels"]
    np.testing.assert_array_equal(grid, result.dense())
    assert [file.name for file in path.parent.iterdir()] == ["a.npz"]
    if not dense:
        with np.load(path, allow_pickle=False) as file:
            scores = dict(zip(map(tuple, file["coords"].tolist()), file["scores"], strict=True))
            assert file["class_names"].tolist() == list(NAMES)
            assert file["pc_range"].tolist() == list(GRID.pc_range)
        expected = zip(map(tuple, result.coords.tolist()), result.scores, strict=True)
        assert scores == dict(expected)


def test_ply_points_open_elsewhere(tmp_path: Path) -> None:
    result = make_result()
    cloud = trimesh.load(result.save(tmp_path / "points.ply"))
    assert isinstance(cloud, trimesh.PointCloud)
    np.testing.assert_allclose(cloud.vertices, result.centres(), atol=1e-6)
    colours = class_colours(NAMES)[result.labels]
    np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], colours)
    stored = cloud.metadata["_ply_raw"]["vertex"]["data"]
    np.testing.assert_array_equal(stored["label"].ravel(), result.labels)
    np.testing.assert_array_equal(stored["score"].ravel(), result.scores)


def test_ply_mesh_encloses_exactly_the_voxels(tmp_path: Path) -> None:
    """The mesh is closed, has the volume of the voxels, and its normals point outwards."""
    result = make_result(number=200)
    mesh = trimesh.load(result.save(tmp_path / "mesh.ply", mesh=True), process=False)
    assert isinstance(mesh, trimesh.Trimesh)
    occupied = result.dense() != 3
    padded = np.pad(occupied, 1)
    faces = sum(int(np.abs(np.diff(padded.astype(int), axis=axis)).sum()) for axis in range(3))
    assert len(mesh.faces) == 2 * faces and len(mesh.vertices) == 4 * faces
    volume = 200 * 0.4 * 0.4 * 0.6
    assert mesh.volume == pytest.approx(volume, rel=1e-5)
    low, high = mesh.bounds
    assert (low >= np.array(GRID.pc_range[:3]) - 1e-5).all()
    assert (high <= np.array(GRID.pc_range[3:]) + 1e-5).all()
    # Each corner has the colour of the voxel behind its face.
    centres = mesh.triangles_center - 1e-3 * mesh.face_normals
    cells = np.floor((centres - GRID.low) / GRID.voxel_size).astype(int)
    colours = class_colours(NAMES)[result.dense()[tuple(cells.T)]]
    corners = np.asarray(mesh.visual.vertex_colors)[mesh.faces][..., :3]
    np.testing.assert_array_equal(corners, np.repeat(colours[:, None], 3, axis=1))


def test_an_empty_prediction_can_be_saved(tmp_path: Path) -> None:
    empty = make_result(number=0)
    for name, options in (("a.npz", {}), ("b.ply", {}), ("c.ply", {"mesh": True})):
        assert empty.save(tmp_path / name, **options).stat().st_size > 0
    assert (empty.dense() == 3).all()


def test_pictures_and_pages(tmp_path: Path) -> None:
    result, frame = make_result(), rig_frame(("left", "right"), 1.5)
    plain = result.draw(scale=0.4)
    assert plain.mode == "RGB" and result.draw(frame, scale=0.4).height > plain.height
    path = result.save(tmp_path / "a.png", scale=0.3, theme="dark")
    with Image.open(path) as file:
        assert file.size != plain.size
    page = result.save(tmp_path / "a.html", frame=frame).read_text()
    assert page.count("data:image/jpeg") == 2 and "driveable" in page
    both = write_page([result, make_result(1)], tmp_path / "drive.html")
    assert both.stat().st_size > 10_000
    assert result.save(tmp_path / "a.rrd", frame=frame).read_bytes().startswith(b"RRF")
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"a.png", "a.html", "a.rrd", "drive.html"}
    inline = result.viewer(height=300)._repr_html_()
    assert inline.startswith("<iframe") and 'height="300"' in inline and "<script" not in inline


def test_pictures_name_the_frame_and_its_time() -> None:
    names = ("cam_back", "cam_front_right", "cam_front", "extra")
    view = view_of(make_result(), rig_frame(names, 1.5))
    assert (view.title, view.recorded, view.sample_token) == ("000123", "1.5 s", "000123")
    assert view_of(make_result(), index=1, total=3).title == "000123  ·  sample 2 of 3"
    dated = replace(make_result(), time_s=1.5e9 + 0.25)
    assert view_of(dated).recorded == "2017-07-14 02:40:00.2 UTC"
    arranged = [image.name for image in panorama(view.images)]
    assert arranged == ["cam_front", "cam_front_right", "cam_back", "extra"]


def test_pages_name_their_frames(tmp_path: Path) -> None:
    results = [make_result(), replace(make_result(1), name="")]
    page = write_page(results, tmp_path / "drive.html").read_text()
    assert '"sample 1 of 2  \\u00b7  000123"' in page
    assert '"sample 2 of 2"' in page


def test_what_a_format_does_not_have_is_refused(tmp_path: Path) -> None:
    result = make_result()
    with pytest.raises(ConfigError, match=r"\.npz, \.ply, \.png, \.html, \.rrd"):
        result.save(tmp_path / "a.obj")
    with pytest.raises(ConfigError, match=r"dense=True is an option of \.npz"):
        result.save(tmp_path / "a.ply", dense=True)
    with pytest.raises(ConfigError, match=r"mesh=True is an option of \.ply"):
        result.save(tmp_path / "a.npz", mesh=True)
    with pytest.raises(ConfigError, match=r"'scale': 'big'.* another type"):
        result.draw(scale="big")
    with pytest.raises(ConfigError, match="no option 'zoom'"):
        result.draw(zoom=2)
    with pytest.raises(ConfigError, match=r"\.npz files have no option 'scale'"):
        result.save(tmp_path / "a.npz", scale=2)
    (tmp_path / "b.npz").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        result.save(tmp_path / "b.npz")
    with pytest.raises(ConfigError, match="1 results and 2 frames"):
        write_page([result], tmp_path / "a.html", [None, None])
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.html", tmp_path / "file" / "a.npz"):
        with pytest.raises(ConfigError, match="file is a file"):
            result.save(path)
    with pytest.raises(ConfigError, match="no result"):
        write_page([], tmp_path / "a.html")
