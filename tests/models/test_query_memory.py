"""Queries that are kept for the next frame: geometry, choice, order, and checkpoints."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from models.errors import ModelConfigError
from models.heads import (
    HeadOutput,
    OccupancyHead,
    QueryMemory,
    SequenceFrame,
    VoxelLogits,
)
from models.heads.query_memory import farthest_first, occ_to_occ
from tests.models.cases import (
    HEAD,
    NUM_CLASSES,
    POINT_HEAD,
    make_batch,
    make_feats,
    make_geometry,
    make_sample,
)

C, KEPT = 32, 4
MEMORY = dict(type="QueryMemory", num_kept=KEPT)


def pose(x: float, y: float, yaw: float) -> np.ndarray:
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, -sin, 0, x], [sin, cos, 0, y], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def tell(sample: BaseDataElement, index: int, scene: str = "a", sequence: int | None = 0) -> Any:
    """Make a sample frame `index` of a drive that turns left at 4 m a frame."""
    sample.set_metainfo(
        dict(
            frame_index=index,
            scene_token=scene,
            sequence_id=sequence,
            timestamp=10**15 + 500_000 * index,
            ego2global=pose(600 + 4.0 * index, 1600 + index, 0.1 * index),
        )
    )
    return sample


def frame(index: int, scene: str = "a", sequence: int | None = 0) -> SequenceFrame:
    found = SequenceFrame.of(tell(make_sample(0), index, scene, sequence))
    assert found is not None
    return found


def make_memory(**changes: Any) -> QueryMemory:
    return QueryMemory(C, **{"num_kept": KEPT, **changes})


def remember(memory: QueryMemory, index: int, seed: int = 0, **place: Any) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    feats, centres = torch.randn(1, 10, C, generator=rng), torch.randn(1, 10, 3, generator=rng)
    scores = torch.rand(1, 10, generator=rng)
    memory.keep([frame(index, **place)], feats, centres, scores)
    return feats[0], centres[0], scores[0]


def test_a_place_in_the_world_stays_where_it_is() -> None:
    before, now = frame(2), frame(3)
    flip = torch.diag(torch.tensor([-1.0, 1, 1, 1])).double()
    flipped = SequenceFrame(now.sequence, 3, False, now.ego2global, now.time_s, flip)
    world = np.array([615.0, 1607.0, 1.2, 1.0])
    seen_before = np.linalg.inv(pose(608, 1602, 0.2)) @ world
    seen_now = np.linalg.inv(pose(612, 1603, 0.3)) @ world
    moved = occ_to_occ(before, now) @ torch.from_numpy(seen_before)
    np.testing.assert_allclose(moved, seen_now, atol=1e-9)
    mirrored = occ_to_occ(before, flipped) @ torch.from_numpy(seen_before)
    np.testing.assert_allclose(mirrored, seen_now * [-1, 1, 1, 1], atol=1e-9)


def test_the_best_queries_come_back_moved_and_normalised() -> None:
    memory = make_memory()
    feats, centres, scores = remember(memory, 0)
    ((points, got),) = memory.recall([frame(1)])
    best = scores.argsort(descending=True)[:KEPT]
    moved = occ_to_occ(frame(0), frame(1)).float()
    expected = centres[best] @ moved[:3, :3].T + moved[:3, 3]
    torch.testing.assert_close(points, expected)
    # The network of pose and time is initialised with zero: a plain layer norm.
    torch.testing.assert_close(got, F.layer_norm(feats[best], (C,)))


def test_equal_scores_keep_the_first() -> None:
    memory = make_memory()
    feats = torch.randn(1, 10, C)
    memory.keep([frame(0)], feats, torch.zeros(1, 10, 3), torch.ones(1, 10))
    ((_, got),) = memory.recall([frame(1)])
    torch.testing.assert_close(got, F.layer_norm(feats[0, :KEPT], (C,)))


def test_features_depend_on_pose_and_time() -> None:
    torch.manual_seed(0)
    memory = make_memory()
    nn.init.normal_(memory.modulation[-1].weight)
    feats, _, scores = remember(memory, 0)
    ((_, got),) = memory.recall([frame(1)])
    moved = torch.linalg.inv(frame(1).ego2global) @ frame(0).ego2global
    motion = torch.cat([moved[:3].flatten(), torch.tensor([0.5], dtype=torch.float64)])
    hidden = memory.modulation[1](memory.modulation[0](motion.float()))
    scale, shift = memory.modulation[2](hidden).chunk(2)
    best = scores.argsort(descending=True)[:KEPT]
    expected = F.layer_norm(feats[best], (C,)) * (1 + scale) + shift
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_only_the_network_of_pose_and_time_gets_gradient() -> None:
    memory = make_memory()
    feats = torch.randn(1, 10, C, requires_grad=True)
    centres = torch.randn(1, 10, 3, requires_grad=True)
    memory.keep([frame(0)], feats, centres, torch.rand(1, 10))
    ((points, got),) = memory.recall([frame(1)])
    assert not points.requires_grad
    got.square().sum().backward()
    assert feats.grad is None
    assert memory.modulation[-1].weight.grad is not None
    assert memory.modulation[-1].weight.grad.any()


@pytest.mark.parametrize(
    "later",
    [
        frame(0),  # a scene begins
        frame(1, scene="b"),
        frame(1, sequence=1),  # another epoch
        frame(2),  # a frame is missing
    ],
)
def test_a_training_starts_anew_where_the_frame_before_is_not_known(later: SequenceFrame) -> None:
    memory = make_memory()
    remember(memory, 0)
    assert memory.recall([later, None]) == [None, None]


def test_single_frames_leave_no_trace() -> None:
    memory = make_memory()
    sample = tell(make_sample(0), 0, sequence=None)
    assert SequenceFrame.of(sample) is None
    memory.keep([None], torch.randn(1, 10, C), torch.randn(1, 10, 3), torch.rand(1, 10))
    assert memory.training_state() == []


def test_a_batch_in_parts_may_be_run_twice() -> None:
    memory = make_memory()
    remember(memory, 0)
    first = memory.recall([frame(1)])
    remember(memory, 1, seed=1)  # the run that only counts
    second = memory.recall([frame(1)])
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    remember(memory, 2, seed=2)
    assert [entry["index"] for entry in memory.training_state()] == [1, 2]


def test_an_evaluation_out_of_order_is_refused_in_one_sentence() -> None:
    memory = make_memory().eval()
    remember(memory, 0)
    remember(memory, 1)
    assert memory.recall([frame(2)])[0] is not None
    for wrong in (frame(4), frame(1, scene="b")):
        with pytest.raises(ModelConfigError, match=r"came without the frame before it") as error:
            memory.recall([wrong])
        assert "\n" not in str(error.value) and "batch_size=1" in str(error.value)


def test_evaluations_and_trainings_do_not_mix() -> None:
    memory = make_memory()
    remember(memory, 0)
    memory.eval()
    with pytest.raises(ModelConfigError):
        memory.recall([frame(1)])
    remember(memory, 0, seed=1)
    memory.eval()  # the next evaluation
    with pytest.raises(ModelConfigError):
        memory.recall([frame(1)])
    memory.train()
    assert memory.recall([frame(1)])[0] is not None


def test_what_a_training_remembers_survives_a_checkpoint() -> None:
    memory, other = make_memory(), make_memory()
    remember(memory, 0)
    remember(memory, 3, seed=1, scene="b")
    file = io.BytesIO()
    torch.save(memory.training_state(), file)
    file.seek(0)
    other.restore_training_state(torch.load(file, weights_only=True))
    places = [frame(1), frame(4, scene="b")]
    for a, b in zip(memory.recall(places), other.recall(places), strict=True):
        assert a is not None and b is not None
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_a_sample_that_does_not_tell_its_frame_is_refused() -> None:
    with pytest.raises(ModelConfigError, match="needs frame_index in the metainfo"):
        SequenceFrame.of(make_sample(0))


def test_farthest_points_are_those_of_brute_force() -> None:
    rng = torch.Generator().manual_seed(0)
    points, others = torch.rand(20, 3, generator=rng), torch.rand(5, 3, generator=rng)
    points[7] = points[3]  # equal distances: the lower index
    distance = (points[:, None] - others[None]).square().sum(-1).sqrt().amin(1)
    ranking = sorted(range(20), key=lambda i: (-float(distance[i]), i))
    assert farthest_first(points, others).tolist() == ranking
    nowhere = torch.full((2, 3), torch.inf)
    assert farthest_first(points, torch.cat([others, nowhere])).tolist() == ranking
    assert farthest_first(points, nowhere).tolist() == list(range(20))


def test_scores_of_queries_are_those_of_their_voxels(make_head: Callable[..., Any]) -> None:
    head = make_head().eval()
    output = head(make_feats(2), make_geometry(2))
    voxels: VoxelLogits = output.voxels[-1]
    table = {tuple(c): float(s) for c, s in zip(
        voxels.coords.tolist(), voxels.logits.sigmoid().amax(1), strict=True)}  # fmt: skip
    points = output.points[-1]
    shape = torch.tensor(head.grid_shape)
    scores = head._query_scores(output)
    for b in range(2):
        for q in range(head.num_query):
            found = []
            for point in points[b, q]:
                index = (point * shape).floor().long().clamp(min=0).minimum(shape - 1)
                found.append(table[(b, *index.tolist())])
            assert scores[b, q].item() == pytest.approx(sum(found) / len(found), abs=1e-5)


def test_scores_of_queries_of_classified_points(make_head: Callable[..., Any]) -> None:
    head = make_head(base=POINT_HEAD)
    logits = torch.zeros(1, 2, 2, NUM_CLASSES)
    logits[0, 0, 0, 1] = 3.0
    point = torch.zeros(1, 2, 2, 3)
    scores = head._query_scores(HeadOutput(point, [point], [logits], [None]))
    best = torch.tensor(3.0).sigmoid().item()
    assert scores[0].tolist() == pytest.approx([(best + 0.5) / 2, 0.5])


@pytest.mark.parametrize("base", [HEAD, POINT_HEAD], ids=["v2", "v1"])
def test_a_frame_starts_from_the_queries_of_the_one_before(
    base: dict[str, Any], make_head: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    head = make_head(base=base, memory=MEMORY).train()
    starts = []
    head.transformer["decoder"].register_forward_pre_hook(lambda _, args: starts.append(args))
    frames = [[frame(i), None] for i in range(2)]
    first = head(make_feats(2), make_geometry(2), frames=frames[0])
    head(make_feats(2, seed=1), make_geometry(2), frames=frames[1])
    learned = head.init_points.weight
    assert torch.equal(starts[0][0][0, :, 0], learned) and not starts[0][-1].any()
    points, feats = starts[1][0][:, :, 0], starts[1][-1]
    assert torch.equal(points[1], learned)  # a single frame
    scores = head._query_scores(first)[0]
    best = scores.sort(descending=True, stable=True).indices[:KEPT]
    centres = head.denormalise(first.points[-1])[0].mean(1)[best].detach()
    moved = occ_to_occ(frame(0), frame(1)).float()
    centres = head.normalise(centres @ moved[:3, :3].T + moved[:3, 3])
    centres = centres[((centres >= 0) & (centres < 1)).all(1)]
    number = len(centres)
    assert number > 0  # some may have left the grid
    kept = feats[0].any(1)
    torch.testing.assert_close(points[0, kept], centres)
    ranking = farthest_first(head.denormalise(learned), head.denormalise(centres))
    rest = learned[ranking[: head.num_query - number]]
    assert sorted(points[0, ~kept].tolist()) == sorted(rest.tolist())


def test_every_weight_gets_a_gradient_with_and_without_a_frame_before(
    make_head: Callable[..., Any],
) -> None:
    head = make_head(memory=MEMORY).train()
    for index in range(2):
        output = head(make_feats(1), make_geometry(1), frames=[frame(index)])
        head.zero_grad()
        sum(head.loss(output, [make_sample(0)]).values()).backward()
        assert all(p.grad is not None for p in head.memory.parameters())
        assert any(bool(p.grad.any()) for p in head.memory.parameters()) == (index == 1)


def test_a_detector_evaluates_a_scene_in_order(make_detector: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    detector = make_detector(pts_bbox_head=HEAD | dict(memory=MEMORY)).eval()

    def predict(index: int) -> Tensor:
        batch = make_batch(index)
        tell(batch["data_samples"][0], index)
        with torch.no_grad():
            (sample,) = detector.test_step(batch)
        return sample.pred_scores

    first = [predict(i) for i in range(3)]
    detector.eval()
    second = [predict(i) for i in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    detector.eval()
    with pytest.raises(ModelConfigError, match="Frame 1 of scene a came without"):
        predict(1)


def test_a_head_without_scores_of_queries_is_named(make_head: Callable[..., Any]) -> None:
    head = make_head(memory=MEMORY)
    with pytest.raises(ModelConfigError, match="CPDHead has no scores of queries"):
        OccupancyHead._query_scores(head, HeadOutput(torch.zeros(1), [], [], []))
