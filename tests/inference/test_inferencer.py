"""Predictions of frames equal those of the data set: streams, single frames, moved cameras."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from loaders.errors import BadDataError, MissingDataError
from models.inference import (
    CameraFrame,
    Frame,
    FrameError,
    OccupancyInferencer,
    OccupancyResult,
)
from scripts.inference.info_frames import InfoFrame, InfoFrames
from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from scripts.visualization.source import SampleSource, Wanted
from tests.inference.conftest import (
    ROOT,
    SIZE_HW,
    V2,
    ToyCase,
    data_set_predictions,
    make_toy_case,
    rig_frame,
)

CAMERAS = (
    "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT",
)  # fmt: skip


def inferencer_of(toy_case: ToyCase, **arguments: Any) -> OccupancyInferencer:
    return OccupancyInferencer(toy_case.config, toy_case.weights, "cpu", **arguments)


def info_frames(toy_case: ToyCase) -> list[InfoFrame]:
    infos = InfoFrames(load_config(toy_case.config), toy_case.info_file)
    (rows,) = infos.scenes().values()
    return list(infos.frames(rows))


def predict_all(
    inferencer: OccupancyInferencer, frames: list[InfoFrame]
) -> dict[str, OccupancyResult]:
    results = {}
    for each in frames:
        if each.is_key:
            results[each.frame.name] = inferencer.push(each.frame)
        else:
            inferencer.observe(each.frame)
    return results


def same(first: OccupancyResult, second: OccupancyResult) -> bool:
    return all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for name in ("coords", "labels", "scores")
    )


CONFIGS = {
    "V1": "configs/toy/opusv1-nano_toy.py",
    "V2": V2,
    "grid in the LiDAR's frame": "configs/toy/opusv2-nano_toy-occupancy-0.4m.py",
    "fusion": "configs/toy/opusv2-fusion-nano_toy.py",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_predictions_are_those_of_the_data_set_bit_for_bit(
    toy: Path, tmp_path: Path, name: str
) -> None:
    toy_case = make_toy_case(tmp_path, toy, CONFIGS[name])
    expected = data_set_predictions(toy_case)
    frames = info_frames(toy_case)
    assert len(expected) == 3 and len(frames) == 3 + 2 * 5
    by_time = predict_all(inferencer_of(toy_case), frames)
    found = [by_time]
    if name == "V2":
        found.append(predict_all(inferencer_of(toy_case, history="count"), frames))
    for results in found:
        assert [*results] == [*expected]
        for token, (coords, labels, scores) in expected.items():
            assert len(labels) > 1000
            np.testing.assert_array_equal(results[token].coords, coords)
            np.testing.assert_array_equal(results[token].labels, labels)
            np.testing.assert_array_equal(results[token].scores, scores)
    first, *_, last = by_time.values()
    assert len(set(first.frame_times_s)) == 1  # without history the frame is repeated
    np.testing.assert_allclose(np.diff(last.frame_times_s), -0.5, atol=0.03)
    assert not np.array_equal(first.coords, last.coords)  # images do matter


def test_queries_that_are_kept_between_predictions_are_those_of_the_data_set(
    toy: Path, tmp_path: Path
) -> None:
    memory = "model['pts_bbox_head']['memory'] = dict(type='QueryMemory', num_kept=20)"
    toy_case = make_toy_case(tmp_path, toy, V2, memory)
    expected = [*data_set_predictions(toy_case).values()]
    inferencer, frames = inferencer_of(toy_case), info_frames(toy_case)
    for _ in range(2):
        results = [*predict_all(inferencer, frames).values()]
        for result, (coords, labels, scores) in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result.coords, coords)
            np.testing.assert_array_equal(result.labels, labels)
            np.testing.assert_array_equal(result.scores, scores)
        key = next(each.frame for each in frames if each.is_key)
        inferencer.predict(key)  # stands alone, and leaves the memory as it is
        inferencer.reset()
    alone = inferencer.predict(frames[-1].frame, [each.frame for each in frames[:-1]])
    assert not same(alone, results[-1])  # the memory matters
    # After a gap without a past the memory is empty, too.
    inferencer.push(replace(key, time_s=0.0))
    again = inferencer.push(replace(key, time_s=60.0))
    assert same(again, results[0])


def test_visualize_draws_what_the_inferencer_predicts(toy_case: ToyCase) -> None:
    source = SampleSource(load_config(toy_case.config), str(toy_case.weights), None, Wanted())
    results = [*predict_all(inferencer_of(toy_case), info_frames(toy_case)).values()]
    assert len(source) == len(results) == 3
    for index, result in enumerate(results):
        np.testing.assert_array_equal(source.view(index).prediction, result.dense())


def test_there_is_one_prediction_path() -> None:
    """Nothing of scripts/ runs a model for predictions itself, except what times its parts."""
    calls = re.compile(r"\.(test_step|val_step)\(|mode=[\"']predict|\.pts_bbox_head\.predict\(")
    callers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "scripts").rglob("*.py")
        if calls.search(path.read_text())
    }
    assert callers == {"scripts/prediction/model.py", "scripts/timings/measure.py"}


def test_a_history_given_at_once_is_one_pushed(toy_case: ToyCase) -> None:
    frames = info_frames(toy_case)
    inferencer = inferencer_of(toy_case)
    pushed = [*predict_all(inferencer, frames).values()][-1]
    kept = inferencer.kept_frames
    alone = inferencer.predict(frames[-1].frame, [each.frame for each in frames[:-1]])
    np.testing.assert_array_equal(alone.coords, pushed.coords)
    np.testing.assert_array_equal(alone.labels, pushed.labels)
    np.testing.assert_allclose(alone.scores, pushed.scores, atol=1e-5)
    assert inferencer.kept_frames == kept  # the stream is as it was


def with_images(frame: Frame, change: Any) -> Frame:
    cameras = {name: change(camera) for name, camera in frame.cameras.items()}
    return replace(frame, cameras=cameras)


def test_images_come_as_files_bytes_and_arrays_of_either_order(
    toy_case: ToyCase, tmp_path: Path
) -> None:
    frame = rig_frame(CAMERAS, 0.0)
    pixels = {name: camera.image for name, camera in frame.cameras.items()}

    def encoded(camera: CameraFrame) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(np.asarray(camera.image)[:, :, ::-1]).save(stream, "PNG")
        return stream.getvalue()

    def as_file(camera: CameraFrame) -> CameraFrame:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        path.write_bytes(encoded(camera))
        return replace(camera, image=path, channel_order=None)

    forms = [
        lambda camera: replace(camera, image=encoded(camera), channel_order=None),
        as_file,
        lambda camera: replace(as_file(camera), image=str(as_file(camera).image)),
        lambda camera: replace(
            camera, image=np.asarray(camera.image)[:, :, ::-1], channel_order="rgb"
        ),
    ]
    inferencer = inferencer_of(toy_case)
    expected = inferencer.predict(frame)
    for form in forms:
        assert same(inferencer.predict(with_images(frame, form)), expected)
    swapped = with_images(frame, lambda camera: replace(camera, channel_order="rgb"))
    assert not same(inferencer.predict(swapped), expected)
    assert all(frame.cameras[name].image is pixels[name] for name in pixels)


def test_mmengines_interface_predicts_independent_frames(toy_case: ToyCase) -> None:
    inferencer = inferencer_of(toy_case)
    frames = [rig_frame(CAMERAS, 7.0 - seed, seed) for seed in range(3)]
    singly = [inferencer.predict(frame) for frame in frames]
    found = inferencer(frames, draw=True)
    assert all(map(same, found["predictions"], singly))
    assert [picture.mode for picture in found["visualization"]] == ["RGB"] * 3
    batched = inferencer(frames, batch_size=2)
    assert batched["visualization"] is None
    for one, other in zip(batched["predictions"], singly, strict=True):
        np.testing.assert_array_equal(one.coords, other.coords)
    assert len(inferencer(frames[0])["predictions"]) == 1


def test_another_rig_needs_its_names_alone(toy_case: ToyCase) -> None:
    names = ("left", "ahead", "right")
    inferencer = inferencer_of(toy_case, cameras=names)
    assert inferencer.cameras == names
    for size in (SIZE_HW, (120, 100), (40, 200)):  # of any size
        result = inferencer.predict(rig_frame(names, 0.0, size_hw=size))
        assert len(result) > 100 and not result.dropped_cameras


# -- cameras without an image ----------------------------------------------------------------


def test_the_last_image_stands_in_with_its_own_pose_and_the_result_says_so(
    toy_case: ToyCase,
) -> None:
    frames = [rig_frame(CAMERAS, 0.1 * i, i) for i in range(3)]
    moved = []
    for i, frame in enumerate(frames):
        vehicle = np.eye(4)
        vehicle[:3, 3] = [0.8 * i, 0.1 * i, 0]
        moved.append(replace(frame, ego2global=vehicle))
    lacking = replace(
        moved[2], cameras={k: v for k, v in moved[2].cameras.items() if k != "CAM_BACK"}
    )
    old = moved[1].cameras["CAM_BACK"]
    assert old is not None and moved[1].ego2global is not None
    stand_in = replace(old, sensor2global=moved[1].ego2global @ old.sensor2ego)
    explicit = replace(moved[2], cameras={**moved[2].cameras, "CAM_BACK": stand_in})
    results = []
    for last in (lacking, explicit, moved[2]):
        inferencer = inferencer_of(toy_case)
        for frame in moved[:2]:
            assert not inferencer.push(frame).dropped_cameras
        results.append(inferencer.push(last))
    assert same(results[0], results[1]) and not same(results[0], results[2])
    assert results[0].dropped_cameras == pytest.approx({"CAM_BACK": 0.1})
    assert not results[1].dropped_cameras
    assert "CAM_BACK" in repr(results[0])


def test_a_camera_without_any_image_sees_nothing(toy_case: ToyCase) -> None:
    """A camera without images equals one that is ten kilometres above the scene."""
    inferencer = inferencer_of(toy_case, max_stand_in_age_s=0.5)
    frame = rig_frame(CAMERAS, 0.0)
    away = np.eye(4)
    away[2, 3] = 10_000.0
    camera = replace(frame.cameras["CAM_BACK_LEFT"], sensor2ego=away)
    expected = inferencer.predict(
        replace(frame, cameras={**frame.cameras, "CAM_BACK_LEFT": camera})
    )
    lacking = replace(frame, cameras={**frame.cameras, "CAM_BACK_LEFT": None})
    found = inferencer.predict(lacking)
    assert same(found, expected) and not same(found, inferencer.predict(frame))
    assert found.dropped_cameras == {"CAM_BACK_LEFT": None}
    # An image that is too old is not used.
    inferencer.push(replace(frame, time_s=-0.6))
    assert inferencer.push(lacking).dropped_cameras == {"CAM_BACK_LEFT": None}


def test_a_changed_rig_is_followed_from_frame_to_frame(toy_case: ToyCase) -> None:
    first, second = rig_frame(CAMERAS, 0.0), rig_frame(CAMERAS, 0.5, 1)
    camera = second.cameras["CAM_FRONT"]
    assert camera is not None
    turned = np.array(camera.sensor2ego)
    turned[:3, 3] += [0.3, 0.0, 0.2]
    changed = {**second.cameras, "CAM_FRONT": replace(camera, sensor2ego=turned)}
    changed["CAM_BACK"] = rig_frame(CAMERAS, 0.5, 2, (81, 120)).cameras["CAM_BACK"]
    second = replace(second, cameras=changed)
    inferencer = inferencer_of(toy_case)
    assert inferencer.push(first).changed_cameras == ()
    result = inferencer.push(second)
    assert result.changed_cameras == ("CAM_FRONT", "CAM_BACK")
    np.testing.assert_array_equal(result.coords, inferencer.predict(second, [first]).coords)


def test_reset_takes_the_names_of_another_rig(toy_case: ToyCase) -> None:
    names = ("left", "ahead", "right")
    first, other = rig_frame(CAMERAS, 0.0), rig_frame(names, 0.0, 1)
    inferencer = inferencer_of(toy_case)
    before = inferencer.push(first)
    with pytest.raises(FrameError, match=r"camera 'left'.* reset\(cameras=\[\.\.\.\]\)"):
        inferencer.push(replace(other, time_s=0.5))
    inferencer.reset(cameras=names)
    assert inferencer.cameras == names and inferencer.kept_frames == 0
    expected = inferencer_of(toy_case, cameras=names).predict(other)
    assert same(inferencer.push(other), expected)
    inferencer.reset(cameras=CAMERAS)
    assert same(inferencer.push(first), before)
    with pytest.raises(FrameError, match="cameras is 'left'"):
        inferencer.reset(cameras="left")
    loaded = OccupancyInferencer(load_config(toy_case.config), toy_case.weights, "cpu")
    with pytest.raises(ConfigError, match="give its path"):
        loaded.reset(cameras=names)


def test_reset_begins_another_recording(toy_case: ToyCase) -> None:
    frames = [rig_frame(CAMERAS, 10.0 + i / 2, i) for i in range(3)]
    inferencer = inferencer_of(toy_case)
    once = list(inferencer.stream(frames))
    with pytest.raises(FrameError, match=r"not newer than the last one \(11\.000000 s\).*reset"):
        inferencer.push(frames[0])
    again = list(inferencer.stream(frames))
    assert all(map(same, once, again))
    inferencer.reset()
    assert inferencer.kept_frames == 0
    assert same(inferencer.push(replace(frames[0], time_s=-5.0)), once[0])


# -- endless stream --------------------------------------------------------------------


def tiny_inferencer(toy_case: ToyCase, names: tuple[str, ...]) -> OccupancyInferencer:
    """Build an untrained Inferencer whose `push` takes some milliseconds."""
    head = "model.pts_bbox_head"
    options = {"final_hw": [32, 32], f"{head}.num_query": 8, f"{head}.score_thr": 0.9}
    return OccupancyInferencer(toy_case.config, device="cpu", cfg_options=options, cameras=names)


def stream_of(inferencer: OccupancyInferencer, number: int, rate_hz: float) -> tuple[int, int]:
    """Push frames; return the numbers of runs and images of the image network after the start."""
    computed: list[int] = []
    hook = inferencer.model.img_backbone.register_forward_pre_hook(
        lambda _, images: computed.append(len(images[0]))
    )
    start = round(2 * rate_hz)
    frames = [rig_frame(("a", "b"), 0.0, seed) for seed in range(7)]
    for i in range(number):
        inferencer.push(replace(frames[i % 7], time_s=i / rate_hz))
        if i == start:
            computed.clear()
    hook.remove()
    return len(computed), sum(computed)


@pytest.mark.parametrize("rate_hz", [2.0, 10.0, 30.0])
def test_each_push_pays_for_its_own_images_and_memory_is_bounded(
    toy_case: ToyCase, rate_hz: float
) -> None:
    inferencer = tiny_inferencer(toy_case, ("a", "b"))
    number = round(4 * rate_hz) + 5
    runs, images = stream_of(inferencer, number, rate_hz)
    start = round(2 * rate_hz)
    own = 2 * (number - start - 1)
    assert runs == number - start - 1
    # Faster than the frames that are kept, some features are lost before their next use.
    assert images == own if rate_hz < 24 else own <= images < 1.6 * own
    # Two half seconds of past, at no more than 24 frames a second.
    assert inferencer.kept_frames <= 1.25 * min(rate_hz, 24) + 1
    assert inferencer.model.cache.limit <= 32 + 2 * 12 + 3


def test_fewer_kept_features_change_nothing_but_the_time(toy_case: ToyCase) -> None:
    frames = [rig_frame(CAMERAS, i / 10, i) for i in range(8)]
    wanted = list(inferencer_of(toy_case).stream(frames))
    few = inferencer_of(toy_case, cached_frames=1)
    for result, expected in zip(few.stream(frames), wanted, strict=True):
        np.testing.assert_array_equal(result.coords, expected.coords)
        assert len(few.model.cache) <= 1


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


@pytest.mark.slow
def test_memory_is_flat_over_thousands_of_frames(toy_case: ToyCase) -> None:
    """OPUS_STREAM_FRAMES=36000 tests an hour at ten frames a second."""
    inferencer = tiny_inferencer(toy_case, ("a",))
    frames = [rig_frame(("a",), 0.0, seed) for seed in range(7)]
    number = int(os.environ.get("OPUS_STREAM_FRAMES", "1200"))
    sizes = []
    for i in range(number):
        inferencer.push(replace(frames[i % 7], time_s=i / 10))
        if i % (number // 8) == number // 8 - 1:
            sizes.append(resident_mb())
    print("resident MB:", [round(size, 1) for size in sizes])
    assert max(sizes[2:]) - sizes[1] < 8, sizes


# -- errors ------------------------------------------------------------------------------------


def changed_camera(**changes: Any) -> Frame:
    frame = rig_frame(CAMERAS, 3.0)
    camera = replace(frame.cameras["CAM_BACK"], **changes)
    return replace(frame, cameras={**frame.cameras, "CAM_BACK": camera}, name="000017")


MIRRORED = np.diag([1.0, -1.0, 1.0, 1.0])
SHIFTED = np.eye(4)
SHIFTED[3, :3] = 1.0
ERRORS = {
    "not a pinhole": (dict(intrinsics=np.eye(4)), "intrinsics of camera CAM_BACK", r"\[3, 3\]"),
    "focal length": (dict(intrinsics=-np.eye(3)), "intrinsics of camera CAM_BACK", "above 0"),
    "no mounting": (dict(sensor2ego=None), "camera CAM_BACK of frame 000017", "sensor2ego"),
    "mirrored": (dict(sensor2ego=MIRRORED), "sensor2ego of camera CAM_BACK", "right-handed"),
    "transposed": (dict(sensor2ego=SHIFTED), "sensor2ego of camera CAM_BACK", "last column"),
    "not finite": (dict(sensor2ego=np.full((4, 4), np.nan)), "camera CAM_BACK", "finite"),
    "order": (dict(channel_order=None), "image of camera CAM_BACK", "'bgr'.*'rgb'"),
    "floats": (dict(image=np.zeros((8, 8, 3))), "image of camera CAM_BACK", r"uint8 \[H, W, 3\]"),
    "a number": (dict(image=5), "image of camera CAM_BACK", "expected a path"),
    "no image": (dict(image=b"text"), "of camera CAM_BACK", "cannot be decoded.*leave the camera"),
    "cut off": (
        dict(image=b"\xff\xd8" * 99),
        "of camera CAM_BACK",
        "decoded.*whole file",
    ),
    "a folder": (dict(image="/"), "image of camera CAM_BACK", "is a folder"),
    "nothing": (dict(image=None), "image of camera CAM_BACK", "NoneType.*leave a camera"),
    "time": (dict(time_s=float("inf")), "time_s of camera CAM_BACK", "finite"),
}


@pytest.fixture(scope="module")
def shared_inferencer(toy_case: ToyCase) -> OccupancyInferencer:
    return inferencer_of(toy_case)


@pytest.mark.parametrize("name", ERRORS)
def test_one_sentence_names_the_camera_and_the_way_out(
    shared_inferencer: OccupancyInferencer, name: str
) -> None:
    changes, place, way_out = ERRORS[name]
    inferencer = shared_inferencer
    inferencer.reset()
    with pytest.raises((FrameError, BadDataError), match=f"{place}.*{way_out}") as caught:
        inferencer.push(changed_camera(**changes))
    assert "\n" not in str(caught.value)
    assert inferencer.kept_frames == 0
    inferencer.push(replace(rig_frame(CAMERAS, 3.0)))  # the stream continues


def test_errors_about_frames_and_arguments(toy_case: ToyCase, tmp_path: Path) -> None:
    inferencer = inferencer_of(toy_case)
    frame = rig_frame(CAMERAS, 0.0)
    with pytest.raises(FrameError, match=r"'CAM_FRUNT' \(did you mean CAM_FRONT\?\).*cameras="):
        inferencer.push(replace(frame, cameras={"CAM_FRUNT": frame.cameras["CAM_FRONT"]}))
    with pytest.raises(FrameError, match="image of none of the cameras CAM_FRONT"):
        inferencer.push(replace(frame, cameras={}))
    with pytest.raises(FrameError, match=r"CAM_FRONT .*ndarray, expected a CameraFrame"):
        inferencer.push(replace(frame, cameras={"CAM_FRONT": np.zeros(3)}))
    with pytest.raises(FrameError, match="a dict was given, expected a Frame"):
        inferencer.push({})  # type: ignore[arg-type]
    gone = changed_camera(image=tmp_path / "gone.jpg", channel_order=None)
    with pytest.raises(
        MissingDataError, match=r"camera CAM_BACK of frame 000017, .*gone\.jpg.*correct the path"
    ):
        inferencer.push(gone)
    for value, words in (("now", "expected a number"), (float("nan"), "expected a finite number")):
        with pytest.raises(FrameError, match=f"time_s of frame at {value} s.*{words}"):
            inferencer.push(replace(frame, time_s=value))
    with pytest.raises(FrameError, match="frames are a str"):
        inferencer("drive")
    with pytest.raises(ConfigError, match="config is a int: give the path"):
        OccupancyInferencer(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="interval_s is half"):
        inferencer_of(toy_case, interval_s="half")
    with pytest.raises(ConfigError, match="max_stand_in_age_s is None"):
        inferencer_of(toy_case, max_stand_in_age_s=None)
    with pytest.raises(ConfigError, match="history is 'newest'"):
        inferencer_of(toy_case, history="newest")
    with pytest.raises(ConfigError, match="device 'cuda:99' does not exist"):
        OccupancyInferencer(toy_case.config, device="cuda:99")
    with pytest.raises(ConfigError, match="device 'tpu'"):
        OccupancyInferencer(toy_case.config, device="tpu")
    with pytest.raises(FrameError, match="different names"):
        inferencer_of(toy_case, cameras=["a", "a"])
    with pytest.raises(ConfigError, match="change a config file"):
        OccupancyInferencer(load_config(toy_case.config), cameras=["a"])


# -- LiDAR -------------------------------------------------------------------------------------


def test_points_of_a_stream_are_those_of_the_data_set(toy: Path, tmp_path: Path) -> None:
    """Pushed sweeps with their poses equal the sweeps of the info file with its matrices."""
    toy_case = make_toy_case(tmp_path, toy, CONFIGS["fusion"], "num_sweeps = 1")
    inferencer = inferencer_of(toy_case)
    keys = [each.frame for each in info_frames(toy_case) if each.is_key]
    seen: list[torch.Tensor] = []
    hook = inferencer.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs"]["points"][0]), with_kwargs=True
    )
    newest = keys[1].lidar_sweeps[0]  # type: ignore[index]
    expected = inferencer.predict(keys[1])
    # The LiDAR's pose at the time of the sweep, from its matrix to the key frame's LiDAR.
    lidar2global = np.asarray(keys[1].ego2global) @ np.asarray(keys[1].lidar2ego)
    then = lidar2global @ np.asarray(newest.sensor2lidar)
    before = replace(
        keys[1],
        time_s=newest.time_s,
        ego2global=then @ np.linalg.inv(np.asarray(keys[1].lidar2ego)),
        lidar=np.fromfile(newest.points, dtype=np.float32).reshape(-1, 5),
        lidar_sweeps=None,
    )
    inferencer.observe(before)
    found = inferencer.push(replace(keys[1], lidar_sweeps=None))
    hook.remove()
    assert len(seen[0]) > 500 and len(np.unique(seen[0][:, 4])) == 2
    np.testing.assert_allclose(seen[1], seen[0], atol=2e-4)
    assert len(found) == pytest.approx(len(expected), rel=0.05)
    with pytest.raises(FrameError, match="no lidar points, and the model fuses LiDAR"):
        inferencer.push(replace(keys[2], lidar=None))
    with pytest.raises(BadDataError, match=r"lidar of frame .*\[n, 3\]"):
        inferencer.push(replace(keys[2], lidar=np.zeros((4, 2))))
    with pytest.raises(FrameError, match="no lidar2ego"):
        inferencer.push(replace(keys[2], lidar2ego=None))
