"""The parts of the generator: curves, rig, world, actors, light."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.toy_nuscenes import props, vehicles
from scripts.toy_nuscenes.actors import make_look
from scripts.toy_nuscenes.camera import take_image
from scripts.toy_nuscenes.classes import CATEGORY_TO_OCC, Occ
from scripts.toy_nuscenes.ground import paint_ground
from scripts.toy_nuscenes.layout import make_layout
from scripts.toy_nuscenes.light import make_light
from scripts.toy_nuscenes.noise import hash01, noise_tile, sample
from scripts.toy_nuscenes.options import Options
from scripts.toy_nuscenes.paths import Motion, Polyline, curve, join
from scripts.toy_nuscenes.placing import place_actors
from scripts.toy_nuscenes.recipes import make_recipe
from scripts.toy_nuscenes.rig import CAMERAS, lidar_directions, lidar_rotation, matrix_quaternion
from scripts.toy_nuscenes.scene import Scene
from scripts.toy_nuscenes.scenery import build_statics
from scripts.toy_nuscenes.shadows import Shadows
from scripts.toy_nuscenes.statics import Kind, StaticWorld


def test_curve_keeps_length_and_curvature() -> None:
    radius = 50.0
    arc = curve((0, 0), 0.0, [(radius * np.pi, 1 / radius)])
    assert arc.length == pytest.approx(radius * np.pi, abs=0.5)
    assert np.allclose(arc.points[-1], (0, 2 * radius), atol=1.0)
    position, heading = arc.at(radius * np.pi / 2, 10.0)
    assert np.allclose(position, (radius - 10, radius), atol=0.6)
    assert float(heading) == pytest.approx(np.pi / 2, abs=0.02)


def test_scalar_pose_equals_the_vector_form() -> None:
    line = curve((3, -2), 1.0, [(40, 0.01), (30, -0.03)])
    for s, d in [(-5.0, 1.0), (0.0, 0.0), (17.3, -2.5), (line.length, 0.5), (line.length + 8, 2.0)]:
        position, heading = line.at(s, d)
        assert np.allclose(line.pose(s, d), (*position, heading))


def test_nearest_inverts_at() -> None:
    line = curve((0, 0), 0.3, [(60, 0.012)])
    s, d = np.array([5.0, 20.0, 44.0]), np.array([3.0, -4.0, 0.5])
    got_s, got_d = line.nearest(line.at(s, d)[0])
    assert np.allclose(got_s, s, atol=0.1) and np.allclose(got_d, d, atol=0.05)


def test_joined_path_turns_smoothly() -> None:
    path = join(np.array([[-20.0, 0], [-8, 0]]), np.array([[0.0, 8], [0, 20]]))
    assert np.abs(np.diff(path.heading)).max() < 0.12
    assert path.heading[0] == pytest.approx(0.0, abs=1e-6) and path.heading[-1] == pytest.approx(
        np.pi / 2, abs=1e-6
    )


def test_lateral_drift_turns_the_heading_into_the_motion() -> None:
    path = Polyline(np.array([[0.0, 0], [100, 0]]))
    motion = Motion(path, lambda t: 10 * t, lambda t: 1.0 * t)
    assert motion.pose(1.0)[2] == pytest.approx(np.arctan2(1, 10), abs=1e-6)
    assert motion.moves and motion.speed(1.0) == pytest.approx(10.0)


def test_cameras_look_along_their_yaw_and_project_back() -> None:
    for camera in CAMERAS:
        forward = camera.rotation() @ (0, 0, 1)
        yaw = np.deg2rad(camera.yaw_deg)
        assert np.allclose(forward, (np.cos(yaw), np.sin(yaw), 0), atol=1e-12)
        assert np.allclose(camera.rotation() @ (0, 1, 0), (0, 0, -1))
        assert np.linalg.det(camera.rotation()) == pytest.approx(1.0)
        rays = camera.ray_directions(40, 24)
        pixels = rays @ camera.intrinsic(40, 24).T
        u, v = np.meshgrid(np.arange(40), np.arange(24))
        assert np.allclose(
            pixels[:, :2] / pixels[:, 2:], np.stack([u, v], -1).reshape(-1, 2), atol=1e-9
        )
    assert CAMERAS[0].intrinsic(1600, 900)[0, 0] == 1266.0
    assert (
        CAMERAS[1].rotation()[1, 2] < 0 < CAMERAS[2].rotation()[1, 2]
    )  # right camera looks to -y, left to +y


def test_lidar_axes_and_rings() -> None:
    assert np.allclose(lidar_rotation() @ (1, 0, 0), (0, -1, 0))  # x points right
    assert np.allclose(lidar_rotation() @ (0, 1, 0), (1, 0, 0))  # y points forward
    assert np.allclose(matrix_quaternion(lidar_rotation()), (np.sqrt(0.5), 0, 0, -np.sqrt(0.5)))
    rays, rings = lidar_directions(16)
    assert rays.shape == (16 * 32, 3) and np.allclose(np.linalg.norm(rays, axis=1), 1)
    assert np.rad2deg(np.arcsin(rays[rings == 0, 2])).max() == pytest.approx(-30.7)
    assert np.rad2deg(np.arcsin(rays[rings == 31, 2])).min() == pytest.approx(10.7)


def test_noise_repeats_and_hash_is_even() -> None:
    tile = noise_tile(3, 5.0)
    assert abs(float(tile[:, 0].mean() - tile[:, -1].mean())) < 0.2
    u = np.array([-0.25, 10.5, 511.75], np.float32)
    v = np.array([3.0, 3.0, 3.0], np.float32)
    assert np.allclose(
        sample(tile, u, v, wrap=True), sample(tile, u + 512, v + 1024, wrap=True), atol=1e-3
    )
    values = hash01(np.arange(20000), np.zeros(20000, int))
    assert values.min() >= 0 and values.max() < 1 and abs(values.mean() - 0.5) < 0.02


def test_models_fill_their_boxes_and_have_outward_normals() -> None:
    kinds = [
        vehicles.cars,
        vehicles.buses,
        vehicles.trucks,
        vehicles.trailers,
        vehicles.construction_vehicles,
        props.bicycles,
        props.motorcycles,
        props.pedestrians,
        props.cones,
        props.barriers,
        props.others,
    ]
    for kind in kinds:
        for model in kind():
            half = np.asarray(model.size) / 2
            assert (np.abs(model.surface - (0, 0, half[2])) <= half).all()
            extent = model.surface.max(0) - model.surface.min(0) + model.voxel
            assert (extent > 0.7 * np.asarray(model.size)).all(), (
                kind.__name__,
                extent,
                model.size,
            )
    bus = vehicles.buses()[0]
    x, y, z = (np.asarray(bus.grid.shape) // 2).tolist()
    assert bus.normals[x, 0, z, 1] < -0.9 and bus.normals[x, -1, z, 1] > 0.9
    assert bus.normals[x, y, -1, 2] > 0.9


def test_every_kind_of_thing_has_a_label() -> None:
    rng = np.random.default_rng(0)
    kinds = [
        "car",
        "bus",
        "truck",
        "trailer",
        "construction",
        "motorcycle",
        "bicycle",
        "parked_bicycle",
        "pedestrian",
        "worker",
        "cone",
        "barrier",
        "other",
    ]
    assert {CATEGORY_TO_OCC[make_look(kind, rng).category] for kind in kinds} == set(Occ) - {
        Occ.DRIVEABLE_SURFACE,
        Occ.OTHER_FLAT,
        Occ.SIDEWALK,
        Occ.TERRAIN,
        Occ.MANMADE,
        Occ.VEGETATION,
        Occ.FREE,
    }
    with pytest.raises(ValueError, match="is not a kind of actor"):
        make_look("dragon", rng)


def test_a_box_throws_its_shadow_away_from_the_sun() -> None:
    world = StaticWorld(np.array([0.0, 0.0]), np.array([40.0, 40.0]))
    slot = world.slots.add(Occ.MANMADE, Kind.PLAIN, (0.5, 0.5, 0.5))
    world.put_box(slot, (20.0, 20.0), 0.0, (2.0, 2.0), 0.0, 6.0)
    light = make_light("clear", (0, 0))
    towards = light.to_sun[:2] / np.linalg.norm(light.to_sun[:2])
    shadows = Shadows.of_world(world, np.array([40.0, 40.0]), light)
    behind, before = np.array([20, 20]) - 4 * towards, np.array([20, 20]) + 4 * towards
    points = np.float32([(*behind, 0.0), (*before, 0.0), (*behind, 5.9), (20, 20, 6.1)])
    assert np.allclose(shadows.sunlit(points), (0, 1, 1, 1))
    across = points[0] + np.linspace(0, 8, 400)[:, None] * np.float32([towards[1], -towards[0], 0])
    share = shadows.sunlit(across.astype(np.float32))
    assert share.dtype == np.float32 and share.min() == 0 and share.max() == 1
    assert np.abs(np.diff(share)).max() < 0.2  # it fades between cells


def test_full_slot_tables_are_reported() -> None:
    world = StaticWorld(np.zeros(2), np.array([4.0, 4.0]))
    for _ in range(255):
        world.slots.add(Occ.MANMADE, Kind.PLAIN, (0, 0, 0))
    with pytest.raises(RuntimeError, match="more than 255 static objects"):
        world.slots.add(Occ.MANMADE, Kind.PLAIN, (0, 0, 0))


def _classes_near_ego(index: int) -> set[Occ]:
    """Return the classes within 35 m of the ego vehicle at a key frame of a default scene."""
    options = Options()
    layout = make_layout(make_recipe(options.seed, index), options.duration_s)
    ground = paint_ground(layout)
    world, _ = build_statics(layout, ground)
    found: set[Occ] = set()
    actors = place_actors(layout, ground, world, options.duration_s)
    for time_s in np.arange(options.samples) * 0.5:
        ego = np.array(layout.ego.pose(time_s)[:2])
        for actor in actors:
            if np.linalg.norm(np.array(actor.motion.pose(time_s)[:2]) - ego) < 35:
                found.add(actor.occ)
        around = ego + np.stack(
            np.meshgrid(np.linspace(-35, 35, 141), np.linspace(-35, 35, 141)), -1
        ).reshape(-1, 2)
        found |= {Occ(int(k)) for k in np.unique(ground.lookup(ground.classes, around))}
        columns = np.floor((around - world.lower) / 0.2).astype(int)
        slots = np.unique(world.grid[columns[:, 0], columns[:, 1]])
        found |= {Occ(int(k)) for k in np.unique(world.slots.occ[slots[slots > 0]])}
    return found


def test_all_classes_occur_in_both_splits() -> None:
    everything = set(Occ) - {Occ.FREE}
    assert _classes_near_ego(8) | _classes_near_ego(9) == everything
    assert _classes_near_ego(0) | _classes_near_ego(4) | _classes_near_ego(5) == everything


def test_scenes_differ_and_repeat(small_scene: Scene, small_options: Options) -> None:
    again = make_layout(make_recipe(0, 0), small_options.duration_s)
    assert np.array_equal(again.main.line.points, small_scene.layout.main.line.points)
    other = make_layout(make_recipe(1, 0), small_options.duration_s)
    assert (
        other.recipe.heading != again.recipe.heading
        and other.recipe.right.setback != again.recipe.right.setback
    )
    assert (
        make_recipe(0, 10).kind == make_recipe(0, 0).kind
        and make_recipe(0, 10).heading != make_recipe(0, 0).heading
    )


def test_no_two_things_overlap(small_scene: Scene) -> None:
    """Surface points of an actor are never deep inside the box of another."""
    for time_s in (0.0, 0.5):
        posed = small_scene.posed(time_s)
        for one in posed:
            for other in posed:
                if (
                    one is other
                    or np.linalg.norm(one.centre - other.centre) > one.radius + other.radius
                ):
                    continue
                local = np.abs((one.points() - other.centre) @ other.rotation)
                assert not (local < np.asarray(other.actor.model.size) / 2 - 0.05).all(1).any()


def test_images_are_not_a_palette(small_scene: Scene) -> None:
    """Pixels of one class have many colours, and images differ between cameras and times."""
    first = take_image(small_scene, CAMERAS[0], 0.0, (96, 54), (0,)).image
    later = take_image(small_scene, CAMERAS[0], 0.5, (96, 54), (0,)).image
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 2000
    assert np.abs(first.astype(int) - later).mean() > 3
    assert 60 < first.mean() < 190 and first.std() > 25
