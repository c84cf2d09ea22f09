from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.ops import PointTree, nearest_neighbor, nearest_neighbor_reference
from models.ops._extension import native

DTYPES = [torch.float32, torch.float64]


def assert_same(query: Tensor, reference: Tensor, **lengths: list[int]) -> None:
    expected_index, expected_squared = nearest_neighbor_reference(query, reference, **lengths)
    queries = PointTree(query, lengths.get("query_lengths"))
    others = {"reference_lengths": lengths.get("reference_lengths")}
    for index, squared in (
        nearest_neighbor(query, reference, **lengths),
        nearest_neighbor(queries, reference, **others),
    ):
        assert torch.equal(index, expected_index)
        assert torch.equal(squared, expected_squared)
        assert index.dtype == torch.int64 and index.device == query.device


def along_curve(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Search with the tree that GPUs build."""
    tree = native("point_tree")(reference, [len(reference)], True)
    return native("nearest_in_tree")(query, [len(query)], tree, [len(reference)])


def between_trees(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    return nearest_neighbor(PointTree(query), PointTree(reference))


def between_curves(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Search between the trees that GPUs build."""
    lengths = [len(query)], [len(reference)]
    trees = (native("point_tree")(x, [len(x)], True) for x in (query, reference))
    own, others = trees
    return native("nearest_between_trees")(own, lengths[0], others, lengths[1], query.dtype)


def brute_force(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    return native("nearest_by_brute_force")(query, reference)


ALL = [
    nearest_neighbor,
    nearest_neighbor_reference,
    along_curve,
    brute_force,
    between_trees,
    between_curves,
]


def test_known_answer(device: str) -> None:
    reference = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0]], device=device)
    query = torch.tensor([[0.9, 0, 0], [0, 5, 0], [0.5, 0, 0]], device=device)  # the last: a tie
    for function in ALL:
        index, squared = function(query, reference)
        assert index.tolist() == [1, 2, 0]
        torch.testing.assert_close(squared.cpu(), torch.tensor([0.01, 9.0, 0.25]))


@given(data=st.data())
def test_native_equals_reference(device: str, data: Any) -> None:
    """Every search method is bitwise equal, also if many references are equally near."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    dtype = data.draw(st.sampled_from(DTYPES))
    n, m = data.draw(st.integers(0, 60)), data.draw(st.integers(1, 200))
    scale = 10.0 ** data.draw(st.integers(-3, 3))
    query = torch.randn(n, 3, generator=generator, dtype=dtype) * scale
    reference = torch.randn(m, 3, generator=generator, dtype=dtype) * scale
    if data.draw(st.booleans()):
        lattice = data.draw(st.sampled_from([0.5, 2.0, 1000.0])) * scale
        reference = (reference / lattice).round() * lattice
        query = (query / lattice * 2).round() * lattice / 2
    if data.draw(st.booleans()):
        reference[:: data.draw(st.integers(1, 5)), 1] = math.nan
    query, reference = query.to(device), reference.to(device)
    assert_same(query, reference)
    expected = nearest_neighbor_reference(query, reference)
    for function in (along_curve, brute_force, between_curves):
        for ours, theirs in zip(function(query, reference), expected, strict=True):
            assert torch.equal(ours, theirs), function.__name__


@pytest.mark.parametrize("dtype", DTYPES)
def test_brute_force_by_many_tiles(device: str, dtype: torch.dtype) -> None:
    """The last tile of 256 references and the last block of 256 queries are not full."""
    for n, m in ((600, 1000), (256, 512), (257, 255), (1, 769)):
        query, reference = torch.rand(n, 3, dtype=dtype), torch.rand(m, 3, dtype=dtype)
        for points in (reference, reference.mul(4).round() / 4):
            args = (query.to(device), points.to(device))
            expected = nearest_neighbor_reference(*args)
            for ours, theirs in zip(brute_force(*args), expected, strict=True):
                assert torch.equal(ours, theirs)


@given(data=st.data())
def test_samples_of_a_batch_are_searched_apart(device: str, data: Any) -> None:
    lengths = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 50)), min_size=1, max_size=4)
    queries, references = map(list, zip(*data.draw(lengths), strict=True))
    query = torch.randn(sum(queries), 3, device=device)
    reference = torch.randn(sum(references), 3, device=device)
    assert_same(query, reference, query_lengths=queries, reference_lengths=references)
    index, squared = nearest_neighbor(query, PointTree(reference, references), queries)
    first_query = first = 0
    for n, m in zip(queries, references, strict=True):
        own = slice(first_query, first_query + n)
        alone, distance = nearest_neighbor(query[own], reference[first : first + m])
        assert torch.equal(index[own], alone + first) and torch.equal(squared[own], distance)
        first_query, first = first_query + n, first + m


@pytest.mark.parametrize("number", [*range(1, 42), 81, 160, 161, 1281, 5000])
def test_trees_of_any_depth(device: str, number: int) -> None:
    reference = torch.rand(number, 3, device=device).mul(6).round()  # many ties
    query = torch.cat([reference + 0.25, torch.rand(100, 3, device=device) * 8 - 1])
    assert_same(query, reference)


@pytest.mark.parametrize("switch", ["OPUS_DISABLE_AVX2", "OPUS_DISABLE_AVX512"])
def test_other_instructions(run_in_new_process: Callable[..., None], switch: str) -> None:
    """The code for processors without them is equal; the choice is made once per process."""
    run_in_new_process(
        """
import torch
from models.ops import PointTree, nearest_neighbor, nearest_neighbor_reference
torch.manual_seed(0)
query, reference = torch.rand(500, 3), torch.rand(2000, 3).mul(30).round() / 30
query[7, 1] = torch.nan
other = nearest_neighbor_reference(query, reference)
for own in (query, PointTree(query)):
    ours = nearest_neighbor(own, reference)
    assert all(torch.equal(a, b) for a, b in zip(ours, other))
""",
        **{switch: "1"},
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_searched_in_float32(device: str, dtype: torch.dtype) -> None:
    query = torch.randn(50, 3, device=device).to(dtype)
    reference = torch.randn(80, 3, device=device).to(dtype)
    index, squared = nearest_neighbor(query, reference)
    expected_index, expected_squared = nearest_neighbor(query.float(), reference.float())
    assert torch.equal(index, expected_index) and torch.equal(squared, expected_squared)
    assert_same(query, reference)


def test_prepared_points_are_searched_many_times(device: str) -> None:
    reference = torch.randn(3000, 3, device=device)
    tree = PointTree(reference)
    for n in (0, 1, 700):
        query = torch.randn(n, 3, device=device)
        for ours, theirs in zip(
            tree.nearest(query), nearest_neighbor_reference(query, tree), strict=True
        ):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_voxel_centres(device: str, dtype: torch.dtype) -> None:
    reference = (torch.rand(9000, 3) * torch.tensor([100, 100, 16])).floor().unique(dim=0)
    reference = (reference.to(dtype) + 0.5) * 0.4 - 40
    query = torch.cat([reference[::20] + 0.2, torch.rand(300, 3, dtype=dtype) * 80 - 40])
    assert_same(query.to(device), reference.to(device))


@pytest.mark.parametrize("kind", ["one_point", "collinear", "outlier", "two_clusters"])
def test_degenerate_distributions_stay_right_and_fast(kind: str) -> None:
    m = 40000
    reference = torch.rand(m, 3)
    if kind == "one_point":
        reference[:] = reference[0]
    elif kind == "collinear":
        reference[:, 1:] = 0.25
    elif kind == "outlier":
        reference[77] = 1e8
    else:
        reference[m // 2 :] += 1e4
    query = torch.cat([torch.rand(m - 1, 3) * 2, torch.full((1, 3), 1e9)])
    start = time.perf_counter()
    found = [nearest_neighbor(query, reference), between_trees(query, reference)]
    assert time.perf_counter() - start < 10  # all pairs would be 1.6e9
    some = torch.cat([torch.arange(0, m, 400), torch.tensor([m - 1])])
    expected_index, expected_squared = nearest_neighbor_reference(query[some], reference)
    for index, squared in found:
        assert torch.equal(index[some], expected_index)
        assert torch.equal(squared[some], expected_squared)


@pytest.mark.parametrize("function", ALL)
def test_points_that_are_not_finite(function: Callable[..., Any], device: str) -> None:
    nan, inf = math.nan, math.inf
    query = torch.tensor([[nan, 0, 0], [inf, 0, 0], [0, 0, 0], [0, -inf, nan]], device=device)
    reference = torch.tensor([[nan, 0, 0], [inf, 0, 0], [3, 0, 0], [0, 2, 0]], device=device)
    index, squared = function(query, reference)
    assert index.tolist() == [0, 0, 3, 0]
    assert squared.tolist() == [inf, inf, 4.0, inf]
    index, squared = function(query, torch.full((2, 3), nan, device=device))
    assert index.tolist() == [0] * 4 and squared.tolist() == [inf] * 4


@pytest.mark.parametrize("function", ALL)
def test_overflowing_distances_tie(function: Callable[..., Any], device: str) -> None:
    query, reference = torch.zeros(2, 3, device=device), torch.full((3, 3), 1e30, device=device)
    index, squared = function(query, reference)
    assert index.tolist() == [0, 0] and squared.tolist() == [math.inf] * 2


def test_sizes_and_strides(device: str) -> None:
    for n, m in [(0, 0), (0, 1), (1, 1), (5, 1), (1, 9), (7, 11)]:
        assert_same(torch.rand(n, 3, device=device), torch.rand(m, 3, device=device))
    assert_same(torch.rand(3, 50, device=device).t(), torch.rand(40, 6, device=device)[:, ::2])


def test_reference_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from sys import modules

    monkeypatch.setattr(modules["models.ops.nearest_neighbor"], "_CHUNK_ELEMENTS", 100)
    assert_same(torch.rand(37, 3), torch.rand(30, 3))


def test_no_gradient() -> None:
    query = torch.rand(4, 3, requires_grad=True)
    _, squared = nearest_neighbor(query, torch.rand(5, 3, requires_grad=True))
    assert not squared.requires_grad


def test_threads_change_nothing(at_threads: Callable[..., Any]) -> None:
    query, reference = torch.rand(9000, 3), torch.rand(8000, 3).mul(50).round().div(50)
    for function in (nearest_neighbor, between_trees):
        one, two = (at_threads(n, function, query, reference) for n in (1, 2))
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def test_bad_arguments(device: str) -> None:
    points = torch.rand(4, 3, device=device)
    for function in (nearest_neighbor, nearest_neighbor_reference):
        with pytest.raises(ValueError, match=r"query must be \[n, 3\], got \[4, 2\]"):
            function(points[:, :2], points)
        with pytest.raises(ValueError, match="at least one point for the 4 queries of sample 0"):
            function(points, points[:0])
        with pytest.raises(ValueError, match="one dtype"):
            function(points, points.double())
        with pytest.raises(ValueError, match=r"a floating-point type, got torch\.int64"):
            function(points.long(), points.long())
        with pytest.raises(ValueError, match=r"query must .* add up to 4 points, got \[1, 2\]"):
            function(points, points, [1, 2], [4])
        with pytest.raises(ValueError, match="same number of samples, got 2 and 1"):
            function(points, points, [1, 3], [4])


def test_a_tree_knows_its_lengths(device: str) -> None:
    points = torch.rand(4, 3, device=device)
    tree = PointTree(points, [1, 3])
    for function in (nearest_neighbor, nearest_neighbor_reference):
        with pytest.raises(ValueError, match=r"query is a PointTree, .* leave out query_lengths"):
            function(tree, tree, [1, 3])
        with pytest.raises(ValueError, match=r"reference is a PointTree, .*out reference_lengths"):
            function(points, tree, [1, 3], [1, 3])
        with pytest.raises(ValueError, match="same number of samples, got 1 and 2"):
            function(PointTree(points), tree)


def test_contract_of_the_native_operations(device: str) -> None:
    points = torch.rand(4, 3, device=device)
    tree = native("point_tree")(points, [4], False)
    with pytest.raises(ValueError, match=r"points must be \[n, 3\], got \[12\]"):
        native("point_tree")(points.flatten(), [4], False)
    with pytest.raises(ValueError, match=r"lengths of points must add up to 4 points, got \[5\]"):
        native("point_tree")(points, [5], False)
    with pytest.raises(ValueError, match="lengths of points must be in 0"):
        native("point_tree")(points, [5, -1], False)
    with pytest.raises(ValueError, match=r"tree must be the \d+ bytes .* got \[3\]"):
        native("nearest_in_tree")(points, [4], tree[:3], [4])
    with pytest.raises(ValueError, match="tree must start at a multiple of 16 bytes"):
        native("nearest_in_tree")(points, [4], torch.cat([tree[:1], tree])[1:], [4])
    with pytest.raises(ValueError, match=r"tree must be the \d+ bytes of point_tree for Double"):
        native("nearest_in_tree")(points.double(), [4], tree, [4])
    with pytest.raises(ValueError, match=r"query must be the \d+ bytes .* lengths \[5\]"):
        native("nearest_between_trees")(tree, [5], tree, [4], torch.float32)
    with pytest.raises(ValueError, match="tree must be contiguous bytes of point_tree, got Float"):
        native("nearest_between_trees")(tree, [4], tree.float(), [4], torch.float32)
    with pytest.raises(ValueError, match="sample 0 has 4 queries and no reference point"):
        native("nearest_in_tree")(points, [4], tree[:0], [0])
    with pytest.raises(ValueError, match="query must be float32 or float64, got Half"):
        native("nearest_in_tree")(points.half(), [4], tree, [4])


@pytest.mark.cuda
def test_devices_must_agree() -> None:
    with pytest.raises(ValueError, match="query and tree must be on one device, got cpu and cuda"):
        nearest_neighbor(torch.rand(4, 3), PointTree(torch.rand(4, 3, device="cuda")))


@pytest.mark.cuda
def test_any_stream_and_device() -> None:
    """Include devices that are not the current one."""
    for number in range(torch.cuda.device_count()):
        reference = torch.rand(5000, 3, device=f"cuda:{number}")
        expected = nearest_neighbor(reference.cpu() + 0.01, reference.cpu())
        streams = [torch.cuda.Stream(number) for _ in range(3)]
        results = []
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream(number))
            with torch.cuda.stream(stream):
                results.append(nearest_neighbor(reference + 0.01, reference))
        torch.cuda.synchronize(number)
        for result in results:
            assert torch.equal(result[0].cpu(), expected[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(device: str, dtype: torch.dtype) -> None:
    query = torch.rand(9, 3, dtype=dtype, device=device)
    reference = torch.rand(25, 3, dtype=dtype, device=device)
    tree = native("point_tree")(reference, [20, 5], False)
    # A tree has bytes of padding, which are what they happen to be: results are not compared.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for order in (False, True):
        args = (reference, [20, 5], order)
        torch.library.opcheck(torch.ops.opus.point_tree.default, args, test_utils=checks)
    torch.library.opcheck(torch.ops.opus.nearest_in_tree.default, (query, [3, 6], tree, [20, 5]))
    torch.library.opcheck(
        torch.ops.opus.nearest_between_trees.default, (tree, [20, 5], tree, [20, 5], dtype)
    )
    torch.library.opcheck(torch.ops.opus.nearest_by_brute_force.default, (query, reference))
