"""Images, LiDAR points, boxes and both kinds of labels show the same world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion

from scripts.toy_nuscenes.camera import take_image
from scripts.toy_nuscenes.casting import ImageFrame, What, cast
from scripts.toy_nuscenes.classes import CATEGORY_TO_OCC, Occ
from scripts.toy_nuscenes.options import Options
from scripts.toy_nuscenes.rig import CAMERAS, Camera
from scripts.toy_nuscenes.scene import Scene
from scripts.toy_nuscenes.statics import Kind
from scripts.toy_nuscenes.visibility import LIDAR, Visibility

LOW, EDGE = np.array([-40.0, -40.0, -1.0]), 0.4
SHAPE = (200, 200, 16)


class KeyFrame:
    """Content of a key frame, in its ego frame."""

    def __init__(self, nusc: NuScenes, sample: dict) -> None:
        root = Path(nusc.dataroot)
        scene = nusc.get("scene", sample["scene_token"])
        labels = np.load(root / "gts" / scene["name"] / sample["token"] / "labels.npz")
        self.semantics, self.camera, self.lidar = (
            labels[k] for k in ("semantics", "mask_camera", "mask_lidar")
        )
        token = sample["data"]["LIDAR_TOP"]
        data = nusc.get("sample_data", token)
        mounting = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
        self.lidar_rotation = Quaternion(mounting["rotation"]).rotation_matrix
        self.lidar_position = np.array(mounting["translation"])
        points = np.fromfile(root / data["filename"], np.float32).reshape(-1, 5)
        self.raw = points
        self.points = points[:, :3] @ self.lidar_rotation.T + self.lidar_position
        rows = np.load(
            root / "occupancy" / f"scene_{scene['token']}" / "occupancy" / f"{token}.npy"
        )
        self.rows = rows
        centres = (rows[:, [2, 1, 0]] + 0.5) * 0.2 + np.array([-51.2, -51.2, -5.0])
        self.open_centres = centres @ self.lidar_rotation.T + self.lidar_position
        pose = nusc.get("ego_pose", data["ego_pose_token"])
        self.ego_rotation, self.ego_position = (
            Quaternion(pose["rotation"]),
            np.array(pose["translation"]),
        )
        self.boxes = []
        for box_token in sample["anns"]:
            box = nusc.get_box(box_token)
            box.translate(-self.ego_position)
            box.rotate(self.ego_rotation.inverse)
            self.boxes.append((nusc.get("sample_annotation", box_token), box))


def cells(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the label voxels [n, 3] of points, and which points are in the grid."""
    index = np.floor((points - LOW) / EDGE).astype(int)
    return index, ((index >= 0) & (index < SHAPE)).all(1)


@pytest.fixture(scope="module")
def frames(small_root: Path) -> list[KeyFrame]:
    nusc = NuScenes(version="v1.0-mini", dataroot=str(small_root), verbose=False)
    return [KeyFrame(nusc, sample) for sample in nusc.sample]


def test_label_formats(frames: list[KeyFrame]) -> None:
    for frame in frames:
        assert frame.semantics.shape == frame.camera.shape == frame.lidar.shape == SHAPE
        assert frame.semantics.dtype == np.uint8 and frame.semantics.max() == int(Occ.FREE)
        assert set(np.unique(frame.camera)) == set(np.unique(frame.lidar)) == {0, 1}
        occupied = frame.semantics != int(Occ.FREE)
        assert 15_000 < occupied.sum() < 60_000
        assert np.issubdtype(frame.rows.dtype, np.integer)
        assert frame.rows.min() >= 0 and (frame.rows.max(0) < (40, 512, 512, 17)).all()
        assert len(np.unique(frame.rows[:, :3], axis=0)) == len(frame.rows)


def test_lidar_format(small_root: Path, frames: list[KeyFrame]) -> None:
    path = next((small_root / "sweeps" / "LIDAR_TOP").iterdir())
    assert LidarPointCloud.from_file(str(path)).nbr_points() > 1000
    for frame in frames:
        assert set(np.unique(frame.raw[:, 4])) <= set(range(32))
        assert 0 <= frame.raw[:, 3].min() and frame.raw[:, 3].max() <= 255
        elevation = np.rad2deg(
            np.arctan2(frame.raw[:, 2], np.hypot(frame.raw[:, 0], frame.raw[:, 1]))
        )
        assert -30.8 < elevation.min() and elevation.max() < 10.8
        assert np.corrcoef(elevation, frame.raw[:, 4])[0, 1] > 0.999


def grown(mask: np.ndarray) -> np.ndarray:
    """Grow a mask [X, Y, Z] by one voxel in all directions."""
    padded = np.pad(mask, 1)
    out = np.zeros_like(mask)
    for shift in np.ndindex(3, 3, 3):
        out |= padded[tuple(slice(a, a + n) for a, n in zip(shift, mask.shape, strict=True))]
    return out


def test_lidar_points_lie_in_or_beside_occupied_voxels(frames: list[KeyFrame]) -> None:
    for frame in frames:
        index, inside = cells(frame.points)
        occupied = frame.semantics != int(Occ.FREE)
        index = index[inside]
        assert inside.sum() > 2000
        assert occupied[tuple(index.T)].mean() > 0.9
        assert grown(occupied)[tuple(index.T)].mean() > 0.995


def test_boxes_hold_voxels_of_their_class(frames: list[KeyFrame]) -> None:
    checked = 0
    for frame in frames:
        occupied = np.argwhere(frame.semantics != int(Occ.FREE))
        centres = (occupied + 0.5) * EDGE + LOW
        labels = frame.semantics[tuple(occupied.T)]
        for record, box in frame.boxes:
            if np.abs(box.center[:2]).max() > 36:
                continue
            mine = labels[points_in_box(box, centres.T, wlh_factor=1.0 + 0.5 / min(box.wlh))]
            expected = int(CATEGORY_TO_OCC[record["category_name"]])
            assert expected in mine, record["category_name"]
            checked += 1
    assert checked > 100


def test_annotated_point_counts_are_true(frames: list[KeyFrame]) -> None:
    for frame in frames:
        counts = [
            (record["num_lidar_pts"], int(points_in_box(box, frame.points.T).sum()))
            for record, box in frame.boxes
        ]
        wrong = [pair for pair in counts if abs(pair[0] - pair[1]) > 1]  # float32 at a box's border
        assert not wrong
        assert sum(count for count, _ in counts) > 300


def test_both_label_sets_agree(frames: list[KeyFrame]) -> None:
    for frame in frames:
        index, inside = cells(frame.open_centres)
        labels = frame.rows[inside, 3]
        here = frame.semantics[tuple(index[inside].T)]
        both = here != int(Occ.FREE)
        # Fine surfaces inside a canopy or under a vehicle have no free neighbour at 0.4 m.
        assert both.mean() > 0.8
        assert grown(frame.semantics != int(Occ.FREE))[tuple(index[inside].T)].mean() > 0.97
        same = here[both] == labels[both]  # 0 means noise there and 'others' here
        assert same.mean() > 0.9


def _first_blocked(
    solid: np.ndarray, origin: np.ndarray, target: np.ndarray, own: tuple[int, int, int]
) -> bool:
    """Return whether the segment to `target` passes a solid voxel other than `own`.

    The segment is sampled in small steps.
    """
    length = float(np.linalg.norm(target - origin))
    steps = origin + np.linspace(0, 1, max(2, int(length / 0.02)))[:, None] * (target - origin)
    index, inside = cells(steps)
    index = index[inside]
    index = index[(index != own).any(1)]
    return bool(solid[tuple(index.T)].any())


@pytest.mark.parametrize("kind", ["camera", "lidar"])
def test_masks_are_what_rays_reach(
    frames: list[KeyFrame], small_scene: Scene, small_options: Options, kind: str
) -> None:
    """Sampled segments through the labels confirm some visible and some hidden voxels."""
    frame = frames[0]
    rng = np.random.default_rng(0)
    solid = frame.semantics != int(Occ.FREE)
    mask = frame.camera if kind == "camera" else frame.lidar
    views = []
    if kind == "camera":
        key = small_scene.ego(0.0)
        for camera in CAMERAS:
            ego = small_scene.ego(camera.trigger_offset_us * 1e-6)
            turn = key.rotation.T @ ego.rotation
            position = turn @ np.array(camera.translation) + key.rotation.T @ (
                ego.translation - key.translation
            )
            views.append(
                (position, turn @ camera.rotation(), camera.intrinsic(*small_options.image_size))
            )
    else:
        views.append((frame.lidar_position, None, None))

    def in_view(point: np.ndarray, view: tuple) -> bool:
        position, rotation, intrinsic = view
        if rotation is None:
            slope = (point - position)[2] / np.hypot(*(point - position)[:2])
            return bool(np.tan(np.deg2rad(-30.7)) <= slope <= np.tan(np.deg2rad(10.7)))
        local = intrinsic @ (rotation.T @ (point - position))
        u, v = local[:2] / max(local[2], 1e-6) + 0.5
        return bool(
            local[2] > 0.1 and 0 <= u < small_options.width and 0 <= v < small_options.height
        )

    offsets = (
        np.array(list(np.ndindex(3, 3, 3))) * 0.49 - 0.49
    )  # corners, sides and centre of a voxel

    def reached(cell: np.ndarray, points: np.ndarray) -> bool:
        targets = (cell + 0.5 + points) * EDGE + LOW
        return any(
            in_view(t, v) and not _first_blocked(solid, v[0], t, tuple(cell))
            for v in views
            for t in targets
        )

    for occupied in (True, False):
        seen = rng.permutation(np.argwhere((mask == 1) & (solid == occupied)))[:60]
        assert np.mean([reached(cell, offsets) for cell in seen]) > 0.96
    hidden = rng.permutation(np.argwhere((mask == 0) & ~solid & (np.arange(16) > 3)))[:60]
    assert np.mean([reached(cell, np.zeros((1, 3))) for cell in hidden]) < 0.06


def test_actor_pixels_lie_in_the_projected_box(small_scene: Scene) -> None:
    size = (160, 90)
    checked = 0
    for camera in CAMERAS:
        shot = take_image(small_scene, camera, 0.5, size, (0,), count_free=True)
        assert shot.image.shape == (90, 160, 3) and shot.image.dtype == np.uint8
        ego = small_scene.ego(0.5)
        rotation = ego.rotation @ camera.rotation()
        origin = ego.rotation @ np.array(camera.translation) + ego.translation
        frame = ImageFrame(origin, rotation, camera.intrinsic(*size), size[1], size[0])
        assert (shot.hits.seen_rays <= shot.hits.free_rays).all()
        for posed in small_scene.posed(0.5):
            mine = np.flatnonzero((shot.hits.what == What.ACTOR) & (shot.hits.actor == posed.index))
            if len(mine) < 20:
                continue
            rows, columns = np.divmod(mine, size[0])
            row, end_row, column, end_column = frame.windows([posed])[0]
            assert row <= rows.min() and rows.max() < end_row
            assert column <= columns.min() and columns.max() < end_column
            points = (
                shot.hits.distance[mine, None] * (camera.ray_directions(*size)[mine] @ rotation.T)
                + origin
            )
            local = np.abs((points - posed.centre) @ posed.rotation)
            assert (local <= np.asarray(posed.actor.model.size) / 2 + 1e-2).all()
            checked += 1
    assert checked > 10


def test_image_casting_equals_casting_every_pixel(small_scene: Scene) -> None:
    """Rays that image casting omits would have the same hits."""
    camera, size = CAMERAS[0], (200, 113)
    ego = small_scene.ego(0.5)
    rotation = ego.rotation @ camera.rotation()
    origin = ego.rotation @ np.array(camera.translation) + ego.translation
    rays = (camera.ray_directions(*size) @ rotation.T).astype(np.float32)
    posed = small_scene.posed(0.5)
    frame = ImageFrame(origin, rotation, camera.intrinsic(*size), size[1], size[0])
    quick = cast(small_scene.world, posed, len(small_scene.actors), origin, rays, frame)
    full = cast(
        small_scene.world, posed, len(small_scene.actors), origin, rays, None, count_free=True
    )
    assert (quick.what == full.what).mean() > 0.995
    same = (quick.what == full.what) & (full.what != What.NOTHING)
    assert (quick.slot[same] == full.slot[same]).mean() > 0.995
    exact = same & (full.what != What.STATIC)
    assert np.allclose(quick.distance[exact], full.distance[exact], rtol=1e-5)
    walls = (
        same
        & (full.what == What.STATIC)
        & (small_scene.world.slots.kind[full.slot] == Kind.BUILDING)
    )
    assert walls.sum() > 500
    assert np.percentile(np.abs(quick.distance[walls] - full.distance[walls]), 95) < 0.6


@pytest.mark.parametrize("camera", CAMERAS[::3], ids=lambda camera: camera.name)
def test_leaving_out_what_is_out_of_view_changes_no_pixel(
    small_scene: Scene, monkeypatch: pytest.MonkeyPatch, camera: Camera
) -> None:
    """Omitted shadows and actors would not be visible in the image."""
    images = []
    for time_s in (0.0, 0.5):
        images.append(take_image(small_scene, camera, time_s, (160, 90), (0,), count_free=True))
    in_sight = ImageFrame._in_sight
    monkeypatch.setattr(ImageFrame, "may_see", lambda self, *_: True)
    monkeypatch.setattr(ImageFrame, "_in_sight", lambda self, actors: actors)
    for image, time_s in zip(images, (0.0, 0.5), strict=True):
        full = take_image(small_scene, camera, time_s, (160, 90), (0,), count_free=True)
        assert np.array_equal(full.image, image.image)
        assert np.array_equal(full.hits.free_rays, image.hits.free_rays)
    ego = small_scene.ego(0.0)
    rotation = ego.rotation @ camera.rotation()
    frame = ImageFrame(ego.translation, rotation, camera.intrinsic(160, 90), 90, 160)
    posed = small_scene.posed(0.0)
    assert 0 < len(in_sight(frame, posed)) < len(posed)


def test_sides_that_look_away_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Casting rays at all sides of voxels finds the same visible voxels."""
    solid = np.random.default_rng(0).random((200, 200, 16)) < 0.01
    solid[:, :, :3] = True
    position, masks = np.array([0.9, 0.1, 1.8]), []
    for _ in range(2):
        seen = np.zeros(solid.shape, bool)
        Visibility(solid).look(position, LIDAR, seen)
        masks.append(seen)
        monkeypatch.setattr(
            Visibility, "_may_face", lambda self, _: np.ones(len(self._side_owners), bool)
        )
    assert np.array_equal(masks[0], masks[1]) and 0.1 < masks[0][solid].mean() < 0.9
