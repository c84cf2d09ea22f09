"""Unusual arguments raise errors: a short `scripts/fuzz.py`, also under the sanitizers."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from models import ops
from models.ops._extension import native
from scripts.fuzzing import ops as target
from scripts.fuzzing import runner as fuzz


@pytest.mark.parametrize("seed", range(3))
def test_odd_arguments(seed: int) -> None:
    """No crash; only the expected kinds of errors are raised."""
    refused = 0
    for name, call in islice(target.cases(seed), 200):
        try:
            call()
        except target.ALLOWED:
            refused += 1
        except Exception as error:
            pytest.fail(f"{name} raised {error!r}")
    assert 40 < refused < 180


def test_the_same_seed_gives_the_same_cases() -> None:
    first, second = ([name for name, _ in islice(target.cases(7), 30)] for _ in range(2))
    assert first == second and len(set(first)) > 20


BAD_CASES = """
import ctypes, time
ALLOWED = (ValueError,)
SECONDS, MEMORY_MIB = 1.0, 100
held = []
def refuse(): raise ValueError
def cases(seed):
    yield "refused", refuse
    yield "wrong error", lambda: [][0]
    yield "large", lambda: bytearray(150 << 20)
    if seed == 0: yield "crash", lambda: ctypes.string_at(0)
    if seed == 1: yield "hangs", lambda: time.sleep(60)
    if seed == 2: yield "grows", lambda: held.extend(bytearray(20 << 20) for _ in iter(int, 1))
    yield "fine", lambda: None
"""


@pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="a crash is reported as the run's own")
def test_findings_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that crashes, hangs or takes too much memory is reported; the run continues."""
    (tmp_path / "bad_fuzz_target").mkdir()
    (tmp_path / "bad_fuzz_target" / "__init__.py").write_text("")
    (tmp_path / "bad_fuzz_target" / "cases.py").write_text(BAD_CASES)
    monkeypatch.syspath_prepend(str(tmp_path))
    began = time.monotonic()
    outcomes = list(fuzz.fuzz(["bad_fuzz_target.cases"] * 4, 0, 0.0, cases_per_seed=10))
    *findings, total = outcomes
    problems = [(x.case.seed, x.case.number, x.case.name, x.problem) for x in findings]
    assert problems[0] == (0, 1, "wrong error", "IndexError: list index out of range")
    assert problems[1][:3] == (0, 2, "large") and "MiB of memory" in problems[1][3]
    assert problems[2] == (0, 3, "crash", "the process ended with exit code -11")
    assert total == 16 and time.monotonic() - began < 60
    assert "--target bad_fuzz_target.cases --seed 0" in str(findings[0])


def kernel_map() -> tuple[ops.KernelMap, list[Any]]:
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 2]])
    arguments = [torch.randn(3, 4), torch.randn(5, 3, 3, 3, 4), torch.randn(5)]
    return ops.build_kernel_map(coords, (3, 3, 3), 3, 1, 1, True), arguments


def changed_pairs(change: Callable[[torch.Tensor], None]) -> Iterator[tuple[str, ops.KernelMap]]:
    for field in ("pairs", "pairs_by_in"):
        own, _ = kernel_map()
        pairs = getattr(own, field).clone()
        change(pairs)
        yield field, dataclasses.replace(own, **{field: pairs})


@pytest.mark.parametrize("value", [3, -1, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("row", [0, 1])
def test_pairs_out_of_range(value: int, row: int) -> None:
    _, arguments = kernel_map()

    def change(pairs: torch.Tensor) -> None:
        pairs[row, 2] = value

    for field, bad in changed_pairs(change):
        with pytest.raises(ValueError, match=rf"{field} must .*(below 3|index)"):
            ops.sparse_conv(*arguments, bad)
    with pytest.raises(ValueError, match="indices from 0 to 2, got"):
        ops.sparse_conv_reference(*arguments, next(changed_pairs(change))[1])


def test_pairs_that_are_no_map() -> None:
    own, arguments = kernel_map()
    for field, bad in changed_pairs(lambda pairs: pairs.copy_(pairs.flip(1))):
        with pytest.raises(ValueError, match=f"{field} must be sorted"):
            ops.sparse_conv(*arguments, bad)
    for starts in (own.starts - 1, own.starts.flip(0)):
        bad = dataclasses.replace(own, starts=starts)
        for function in (ops.sparse_conv, ops.sparse_conv_reference):
            with pytest.raises(ValueError, match="starts must begin with 0"):
                function(*arguments, bad)
    with pytest.raises(ValueError, match=r"starts must be int64 \[28\] on the CPU, got .* \[27\]"):
        ops.sparse_conv(*arguments, dataclasses.replace(own, starts=own.starts[:-1]))


@pytest.mark.parametrize("build", [ops.build_kernel_map, ops.build_kernel_map_reference])
def test_sizes_of_kernel_maps(build: Callable[..., ops.KernelMap]) -> None:
    coords = torch.zeros(1, 4, dtype=torch.int64)
    for kernel in ((2**31, 1, 1), (2**20 + 1, 1, 1), (1024, 1024, 2)):
        with pytest.raises(ValueError, match=r"up to 1048576 positions|from 1 to 2147483647"):
            build(coords, (4, 4, 4), kernel)
    for setting in ("stride", "padding"):
        with pytest.raises(ValueError, match=f"{setting} must be .* to 2147483647"):
            build(coords, (4, 4, 4), 3, **{setting: 2**62})
        with pytest.raises(TypeError):
            build(coords, (4, 4, 4), 3, **{setting: 1.5})


def test_short_lists() -> None:
    """A schema of the library promises no length."""
    drawn = torch.zeros(3, 4, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="sun_slope must have 2 entries, got 1"):
        native("voxel_light")(drawn, drawn, [0.5])
    grids = torch.zeros(1, 3, 4, 5, dtype=torch.uint8)
    masks = native("occupancy_masks")(grids, 0)
    with pytest.raises(ValueError, match="upper must have 3 entries, got 0"):
        native("occupancy_masks_update_")(masks, grids, 0, [0, 0, 0], [])
    rays = torch.ones(1, 3)
    with pytest.raises(ValueError, match="grid_min must have 3 entries, got 2"):
        native("ray_cast")(masks, [3, 4, 5], rays, rays, [0.0, 0.0], [1.0] * 3, 1.0, True)
    with pytest.raises(ValueError, match="stride must have 3 entries, got 1"):
        coords = torch.zeros(1, 4, dtype=torch.int64)
        native("kernel_map")(coords, [4] * 3, [3] * 3, [1], [0] * 3, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"brightness": [[1.0, 0.0]] * 5}, r"brightness must be \[6\]\[2\]"),
        ({"brightness": [[1.0]] * 6}, r"brightness must be \[6\]\[2\]"),
        ({"rotation": [[1.0, 0.0]] * 3}, r"rotation must be \[3\]\[3\]"),
        ({"position": [1.0]}, "position must have three entries, got 1"),
        ({"edges": ()}, "edges must have three entries, got 0"),
        ({"fog": (0.0, 1.0)}, "fog must have three entries, got 2"),
        ({"grid_min": [0.0] * 4}, "grid_min must have three entries, got 4"),
        ({"voxel_size": [1.0, 0.0, 1.0]}, "voxel_size must be positive"),
    ],
)
@pytest.mark.parametrize("shade", [ops.voxel_shading, ops.voxel_shading_reference])
def test_numbers_of_a_picture(
    shade: Callable[..., Any], change: dict[str, Any], message: str
) -> None:
    pyramid = ops.OccupancyPyramid(torch.zeros(1, 2, 2, 2, dtype=torch.uint8), 0)
    light, unit = torch.ones(4, 4, 4, 2), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    scene = ops.VoxelScene(
        pyramid, light, torch.ones(3, 3), [[1.0, 0.0]] * 6, 0.5, [0.0] * 3, [1.0] * 3
    )
    view = ops.VoxelView([0.0] * 3, unit, 9.0, (0.0, 1.0, 1.0), (0.0, 1.0, 1.0))
    scene = scene._replace(**{k: v for k, v in change.items() if k in scene._fields})
    view = view._replace(**{k: v for k, v in change.items() if k in view._fields})
    with pytest.raises(ValueError, match=message):
        shade(scene, view, torch.ones(1, 1, 3), torch.ones(1, 3))


def test_steep_sun_takes_little_memory() -> None:
    before = fuzz.reset_peak_mib()
    drawn = torch.zeros(20, 20, 4, dtype=torch.bool)
    light = ops.voxel_light(drawn, drawn, (500.0, -999.0))
    assert light.min() > 0 and fuzz.peak_mib() - before < 200


def test_gradients_of_other_winners_are_left_out() -> None:
    winner = torch.tensor([[0, 9], [-1, 2**62]])
    grad = native("voxel_max_backward")(torch.ones(2, 2), winner, 3)
    assert grad.tolist() == [[1, 0], [0, 0], [0, 0]]


def test_bytes_that_are_no_tree() -> None:
    tree = native("point_tree")(torch.randn(30, 3), [30], False)
    noise = torch.full_like(tree, 0x7F)
    with pytest.raises(ValueError, match="query must be bytes of point_tree"):
        native("nearest_between_trees")(noise, [30], tree, [30], torch.float32)
    with pytest.raises(ValueError, match="lengths of tree must be in"):
        native("nearest_in_tree")(torch.randn(1, 3), [1], tree, [2**62])
