from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.ops import SharedMaps, multi_view_sampling, multi_view_sampling_reference

BOTH = [multi_view_sampling, multi_view_sampling_reference]


class Case(NamedTuple):
    feats: list[Tensor]
    points: Tensor
    occ2img: Tensor
    level_weights: Tensor
    img_hw: tuple[int, int]
    num_cams: int

    def leaves(self) -> list[Tensor]:
        return [x.requires_grad_() for x in (*self.feats, self.points, self.level_weights)]


def cameras(frames: int, cams: int, img_hw: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return a ring of overlapping pinhole cameras that rotates and moves between frames."""
    height, width = img_hw
    focal = 0.4 * width
    intrinsic = torch.tensor(
        [[focal, 0, width / 2, 0], [0, focal, height / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
        dtype=dtype,
    )
    matrices = []
    for t in range(frames):
        for n in range(cams):
            yaw = 2 * math.pi * n / cams + 0.1 * t
            s, c = math.sin(yaw), math.cos(yaw)
            pose = [[s, -c, 0, 0.1 * t], [0, 0, -1, 0.2], [c, s, 0, 0.3], [0, 0, 0, 1]]
            matrices.append(intrinsic @ torch.tensor(pose, dtype=dtype))
    return torch.stack(matrices)


def make_case(
    B: int = 2, T: int = 2, N: int = 3, Q: int = 7, G: int = 2, P: int = 3, c: int = 4,
    sizes: tuple[tuple[int, int], ...] = ((8, 12), (4, 6), (2, 3)),
    img_hw: tuple[int, int] = (32, 48), dtype: torch.dtype = torch.float64, seed: int = 0,
) -> Case:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return Case(
        [normal(B, T * N, G * c, h, w) for h, w in sizes],
        normal(B, Q, G, P, 3) * torch.tensor([8, 8, 2], dtype=dtype),
        cameras(T, N, img_hw, dtype).expand(B, -1, -1, -1) + 0.01 * normal(B, 1, 4, 4),
        normal(B, Q, G, P, len(sizes)).softmax(-1),
        img_hw,
        N,
    )


def with_gradients(function: Callable[..., Tensor], case: Case, pairing: str) -> list[Tensor]:
    leaves = case.leaves()
    out = function(*case, pairing)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator, dtype=out.dtype).to(out.device)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def on_device(case: Case, device: str) -> Case:
    """Copy `case` to a device with the same memory layout."""
    feats, *tensors = case[:4]
    moved = [x.detach().to(device) for x in feats]
    return Case(moved, *(x.detach().to(device) for x in tensors), *case[4:])


def assert_equals_reference(
    case: Case, pairing: str = "published", tolerance: float = 1e-12,
    device: str = "cpu",
) -> None:  # fmt: skip
    there = on_device(case, device)
    ours = [x.cpu() for x in with_gradients(multi_view_sampling, there, pairing)]
    theirs = with_gradients(multi_view_sampling_reference, case, pairing)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.isfinite().all()
        scale = max(1.0, float(b.abs().max()) if b.numel() else 0.0)
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


def by_definition(case: Case, pairing: str) -> Tensor:
    """Compute the operation from its description, one sample at a time, with grid_sample."""
    feats, points, occ2img, level_weights, (height, width), N = case
    B, Q, G, P, _ = points.shape
    T, c = occ2img.shape[1] // N, feats[0].shape[2] // G
    out = points.new_zeros(B, Q, G, T * P, c)
    for b, q, g, p, t in torch.cartesian_prod(*map(torch.arange, (B, Q, G, P, T))).tolist():
        homogeneous = torch.cat([points[b, q, g, p], points.new_ones(1)])
        chosen = None
        for n in reversed(range(N)):
            x, y, depth, _ = (occ2img[b, t * N + n] @ homogeneous).tolist()
            u, v = x / max(depth, 1e-5), y / max(depth, 1e-5)
            if (depth > 1e-5 and 0 < u < width and 0 < v < height) or (chosen is None and n == 0):
                chosen = (n, u, v)
        assert chosen is not None
        n, u, v = chosen
        weights = level_weights[b, q, (t * G + g) // T if pairing == "published" else g, p]
        grid = points.new_tensor([[[[2 * u / width - 1, 2 * v / height - 1]]]])
        for level, feat in enumerate(feats):
            image = feat[b, t * N + n, g * c : (g + 1) * c][None]
            value = F.grid_sample(image, grid, padding_mode="zeros", align_corners=True)
            out[b, q, g, t * P + p] += weights[level] * value[0, :, 0, 0]
    return out


@pytest.mark.parametrize("pairing", ["published", "straight"])
@pytest.mark.parametrize("function", BOTH)
def test_agrees_with_the_definition(function: Callable[..., Tensor], pairing: str) -> None:
    case = make_case(B=1, Q=6, T=3, G=2)
    case.points[0, 0, 0, 0] = 0  # behind cameras, near their planes
    expected = by_definition(case, pairing)
    torch.testing.assert_close(function(*case, pairing), expected, rtol=0, atol=1e-10)
    assert (expected != 0).any()


@pytest.mark.parametrize("function", BOTH)
def test_lowest_numbered_camera_wins(function: Callable[..., Tensor]) -> None:
    case = make_case(B=1, T=1, N=3, Q=1, G=1, P=1, c=1, sizes=((4, 4),))
    maps = (
        torch.tensor([1.0, 10.0, 100.0]).double()[None, :, None, None, None].expand(1, 3, 1, 4, 4)
    )
    sees = torch.tensor([[16.0, 0, 24, 0], [0, 16, 16, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).double()
    blind = sees.clone()
    blind[2, 2] = -1  # the point lies behind
    point = torch.tensor([0.1, 0.1, 2.0]).double().reshape(1, 1, 1, 1, 3)
    weights = torch.ones(1, 1, 1, 1, 1).double()
    for matrices, expected in (
        ((sees, sees, sees), 1.0),
        ((blind, sees, sees), 10.0),
        ((blind, blind, sees), 100.0),
        ((blind, blind, blind), 0.0),  # camera 0, clamped depth: far outside
    ):
        out = function([maps], point, torch.stack(matrices)[None], weights, case.img_hw, 3)
        assert out.item() == pytest.approx(expected)


@given(data=st.data())
def test_native_equals_reference(data: Any) -> None:
    small = st.integers(1, 3)
    sizes = tuple(
        data.draw(st.tuples(st.sampled_from([1, 2, 5]), st.sampled_from([1, 3, 8])))
        for _ in range(data.draw(st.integers(1, 5)))
    )
    case = make_case(
        B=data.draw(small), T=data.draw(st.integers(1, 4)), N=data.draw(small),
        Q=data.draw(st.integers(0, 6)), G=data.draw(st.sampled_from([1, 2, 4])),
        P=data.draw(st.integers(0, 3)), c=data.draw(st.sampled_from([1, 3, 16])), sizes=sizes,
        seed=data.draw(st.integers(0, 2**31)),
    )  # fmt: skip
    case.points.mul_(data.draw(st.sampled_from([0.0, 0.1, 1.0, 100.0])))
    assert_equals_reference(case, data.draw(st.sampled_from(["published", "straight"])))


@pytest.mark.parametrize("pairing", ["published", "straight"])
@pytest.mark.parametrize("c", [3, 32])
def test_float32(c: int, pairing: str, device: str) -> None:
    case = make_case(Q=70, c=c, dtype=torch.float32)
    assert_equals_reference(case, pairing, tolerance=2e-5, device=device)


def channels_last(case: Case) -> Case:
    feats = [x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for x in case.feats]
    return case._replace(feats=feats)


@pytest.mark.parametrize("c", [1, 6, 20, 64, 132])
def test_channels_last_in_single_precision(c: int, device: str) -> None:
    """More and fewer channels than the lanes of a warp, in whole and partial quads."""
    assert_equals_reference(
        channels_last(make_case(B=1, Q=9, T=3, c=c, dtype=torch.float32)), tolerance=2e-5,
        device=device,
    )  # fmt: skip


@pytest.mark.parametrize(
    "sizes",
    [
        {"Q": 0}, {"P": 0}, {"Q": 1, "G": 1, "P": 1, "T": 1, "N": 1}, {"P": 45}, {"P": 320},
        {"P": 430},
    ],
)  # fmt: skip
def test_numbers_of_samples_in_single_precision(sizes: dict[str, int], device: str) -> None:
    """No sample, one sample, and more per query than threads in a block.

    The last cases fill 45 of the 48 KiB of shared memory that a block has by default, including
    static arrays, and more than that.
    """
    case = make_case(**{"B": 1, "Q": 2, "T": 3, **sizes}, dtype=torch.float32)
    assert_equals_reference(channels_last(case), tolerance=2e-5, device=device)


@pytest.mark.parametrize("levels", [1, 16])
def test_numbers_of_levels_in_single_precision(levels: int, device: str) -> None:
    sizes = tuple((1 + i % 5, 2 + i % 7) for i in range(levels))
    case = make_case(B=1, Q=5, sizes=sizes, dtype=torch.float32)
    assert_equals_reference(case, tolerance=2e-5, device=device)


@pytest.mark.parametrize("pairing", ["published", "straight"])
def test_gradcheck(pairing: str) -> None:
    case = make_case(B=1, T=2, N=2, Q=2, G=2, P=2, c=2, sizes=((4, 5), (2, 3)))
    L = len(case.feats)

    def function(*leaves: Tensor) -> Tensor:
        return multi_view_sampling(
            leaves[:L], leaves[L], case.occ2img, leaves[L + 1], case.img_hw, case.num_cams, pairing
        )

    assert torch.autograd.gradcheck(function, case.leaves())


def test_image_borders() -> None:
    """Pixels on, just inside and just outside the border of image and maps."""
    img_hw = (32, 48)
    matrix = torch.eye(4, dtype=torch.float64)[None, None]  # u, v = x / z, y / z
    u = torch.tensor([0.0, 1e-9, 24.0, 48 - 1e-9, 48.0, -3.0, 50.0, -60.0], dtype=torch.float64)
    v = torch.tensor([0.0, 1e-9, 16.0, 32 - 1e-9, 32.0, -2.0, 33.0, 900.0], dtype=torch.float64)
    uv = torch.cartesian_prod(u, v)
    points = torch.cat([uv, torch.ones(len(uv), 1)], 1).reshape(1, -1, 1, 1, 3)
    feats = [torch.randn(1, 1, 2, h, w, dtype=torch.float64) for h, w in ((8, 12), (1, 1), (3, 1))]
    weights = torch.rand(1, len(uv), 1, 1, 3, dtype=torch.float64)
    case = Case(feats, points, matrix, weights, img_hw, 1)
    assert_equals_reference(case)
    expected = by_definition(case, "published")
    torch.testing.assert_close(multi_view_sampling(*case), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_points_that_are_not_finite(
    function: Callable[..., Tensor], bad: float, device: str
) -> None:
    case = make_case(B=1, Q=4, G=1, P=3, sizes=((8, 12), (1, 1)), dtype=torch.float32)
    case.points[0, 1, 0, 0, 0] = bad
    case.points[0, 2, 0, 1, 2] = bad
    case.points[0, 3, 0, 2] = bad
    out, *grads = (x.cpu() for x in with_gradients(function, on_device(case, device), "published"))
    out = out.unflatten(3, (2, 3))
    for q, p in ((1, 0), (2, 1), (3, 2)):
        assert (out[0, q, 0, :, p] == 0).all()
        assert (grads[2][0, q, 0, p] == 0).all()
    assert all(x.isfinite().all() for x in (out, *grads))
    assert (out[0, 0] != 0).any()


def test_huge_coordinates_in_single_precision(device: str) -> None:
    case = make_case(B=1, Q=6, dtype=torch.float32)
    case.points[0, 0] = 1e38
    case.points[0, 1, :, :, 2] = -1e30
    assert_equals_reference(case, tolerance=2e-5, device=device)


def test_huge_coordinates() -> None:
    case = make_case(B=1, Q=6)
    case.points[0, 0] = 1e300
    case.points[0, 1, :, :, 2] = -1e30
    case.points[0, 2] = 1e9
    assert_equals_reference(case)


def test_map_layouts_agree_and_are_left_alone() -> None:
    case = make_case()
    expected = multi_view_sampling(*case)
    channels_last = [
        x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for x in case.feats
    ]
    padded = [F.pad(x, (1, 2, 3, 4))[..., 3:-4, 1:-2] for x in channels_last]
    for feats in (channels_last, padded):
        before = [x.clone() for x in feats]
        ours = multi_view_sampling(feats, *case[1:])
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)  # another order of sums
        assert all(torch.equal(a, b) for a, b in zip(before, feats, strict=True))
    strided = case._replace(
        points=case.points.transpose(1, 2).contiguous().transpose(1, 2),
        occ2img=case.occ2img.transpose(2, 3).contiguous().transpose(2, 3),
        level_weights=case.level_weights.flip(0)
        .flip(0)
        .transpose(0, 3)
        .contiguous()
        .transpose(0, 3),
    )
    assert torch.equal(multi_view_sampling(*strided), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("adjacent", [True, False])
def test_half_precision_maps(dtype: torch.dtype, adjacent: bool, device: str) -> None:
    """The result equals that of the same numbers in single precision."""
    case = on_device(make_case(B=1, Q=9, c=20, dtype=torch.float32), device)
    feats = [x.to(dtype) for x in case.feats]
    feats[0][0, 0, 0, 0, :3] = torch.tensor([0.0, -0.0, 6e-8])  # subnormal in 16 bits
    if adjacent:
        feats = [
            x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for x in feats
        ]  # fmt: skip
    half = case._replace(feats=feats)
    wide = case._replace(feats=[x.float() for x in feats])
    ours = with_gradients(multi_view_sampling, half, "published")
    exact = with_gradients(multi_view_sampling, wide, "published")
    levels = len(feats)
    for i, (a, b) in enumerate(zip(ours, exact, strict=True)):
        of_maps = 1 <= i <= levels
        assert a.dtype == (dtype if of_maps else torch.float32)
        tolerance = 1e-2 if of_maps else 1e-5  # gradients of maps are rounded to their dtype
        torch.testing.assert_close(a.float(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("maps_large", [True, False])
def test_maps_with_channels_apart(maps_large: bool, device: str) -> None:
    """Few reads of large maps are not regrouped, many reads of small maps are."""
    sizes = ((30, 40), (20, 16)) if maps_large else ((3, 4), (2, 2))
    case = make_case(
        B=1, Q=2 if maps_large else 40, P=1, c=12, sizes=sizes, dtype=torch.float32
    )  # fmt: skip
    assert all(x.stride(2) != 1 for x in case.feats)
    assert_equals_reference(case, tolerance=2e-5, device=device)


def test_strided_maps_in_single_precision(device: str) -> None:
    """Adjacent channels, but texel strides that are odd or no multiple of four."""
    case = channels_last(make_case(B=1, Q=5, c=8, dtype=torch.float32))
    for channels in (1, 4):  # that lie between texels and are no part of the map
        feats = [F.pad(x, (1, 2, 3, 4, 0, channels)) for x in case.feats]
        last = [x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) for x in feats]
        padded = [x[:, :, :16, 3:-4, 1:-2].to(device) for x in last]
        assert all(x.stride(4) == 16 + channels for x in padded)
        there = on_device(case, device)._replace(feats=padded)
        ours = [x.cpu() for x in with_gradients(multi_view_sampling, there, "published")]
        theirs = with_gradients(multi_view_sampling_reference, case, "published")
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_forward_repeats(device: str) -> None:
    case = on_device(make_case(Q=30, c=8, dtype=torch.float32), device)
    assert torch.equal(multi_view_sampling(*case), multi_view_sampling(*case))


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("c", [6, 8])
@pytest.mark.usefixtures("deterministic")
def test_deterministic_gradients(c: int, device: str) -> None:
    """Many samples in few texels; gradients of very different sizes, and a NaN."""
    case = make_case(Q=40, c=c, sizes=((2, 3), (1, 1)), dtype=torch.float32)
    assert_equals_reference(channels_last(case), tolerance=2e-5, device=device)
    there = on_device(case, device)
    first, second = (with_gradients(multi_view_sampling, there, "published") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for factor in (1e-30, 1e30):
        leaves = there.leaves()
        out, reference = multi_view_sampling(*there), multi_view_sampling_reference(*there)
        grad = torch.full_like(out, factor)
        (ours,) = torch.autograd.grad(out, leaves[:1], grad, retain_graph=True)
        (theirs,) = torch.autograd.grad(reference, leaves[:1], grad)
        torch.testing.assert_close(ours / factor, theirs / factor, rtol=2e-5, atol=2e-5)
        grad.select(4, 0).fill_(math.nan)  # of one channel
        (spoilt,) = torch.autograd.grad(out, leaves[:1], grad)
        assert spoilt[:, :, 0].isnan().any() and not spoilt[:, :, 1:c].isnan().any()
        assert torch.equal(spoilt[:, :, 1:c], ours[:, :, 1:c])


@pytest.mark.cuda
def test_streams_and_devices() -> None:
    """Kernels run on the current stream of the tensors' device, not of the current device."""
    case = on_device(make_case(Q=400, c=64, dtype=torch.float32), "cpu")
    expected = multi_view_sampling(*case)
    for index in range(torch.cuda.device_count()):
        device = f"cuda:{index}"
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream), torch.cuda.device(0):
            torch.cuda._sleep(10**7)  # tensors are not there yet when the kernel is launched
            out = multi_view_sampling(*on_device(case, device))
        stream.synchronize()
        torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=1e-5)


def test_partial_gradients() -> None:
    case = make_case()
    check_partial_gradients(case, 1e-7)


def test_partial_gradients_in_single_precision(device: str) -> None:
    check_partial_gradients(on_device(make_case(dtype=torch.float32), device), 1e-5)


def check_partial_gradients(case: Case, tolerance: float) -> None:
    expected = with_gradients(multi_view_sampling_reference, case, "published")[1:]
    for wanted in range(5):
        leaves = [x.detach().clone() for x in (*case.feats, case.points, case.level_weights)]
        leaves[wanted].requires_grad_()
        out = multi_view_sampling(
            leaves[:3], leaves[3], case.occ2img, leaves[4], case.img_hw, case.num_cams
        )
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        (ours,) = torch.autograd.grad(out, leaves[wanted], grad.to(out.device))
        torch.testing.assert_close(ours, expected[wanted], rtol=tolerance, atol=tolerance)


def test_threads_change_nothing(at_threads: Callable[..., Any]) -> None:
    case = make_case(B=1, Q=120, c=8, dtype=torch.float32)
    results = [at_threads(n, with_gradients, multi_view_sampling, case, "straight") for n in (1, 2)]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_bad_arguments() -> None:
    case = make_case()
    feats, points, occ2img, weights, img_hw, cams = case
    for function in BOTH:
        for args, message in (
            ((feats, points[..., :2], occ2img, weights), r"points must be \[B, Q, G, P, 3\]"),
            ((feats, points, occ2img[:1], weights), r"occ2img must be \[2, T\*N, 4, 4\], got"),
            ((feats, points, occ2img[:, :5], weights), "multiple of num_cams=3 images, got 5"),
            (([], points, occ2img, weights), "at least one level"),
            (([feats[0], feats[1][:, :3]], points, occ2img, weights), r"feats\[1\] must be"),
            (([x[:, :, :5] for x in feats], points, occ2img, weights), "do not divide into G=2"),
            ((feats, points, occ2img, weights[..., :2]), r"level_weights must be .* 3\], got"),
            ((feats, points.float(), occ2img, weights), "share float32 or float64"),
            (([x.half() for x in feats], points, occ2img, weights), "feats must all be one of"),
        ):
            with pytest.raises(ValueError, match=message):
                function(*args, img_hw, cams)
        with pytest.raises(ValueError, match="pairing must be one of"):
            function(*case, "crossed")


def test_opcheck() -> None:
    case = make_case(B=1, Q=2, c=2)
    case.leaves()
    settings = (*case.img_hw, case.num_cams, True)
    torch.library.opcheck(
        torch.ops.opus.multi_view_sampling.default,
        (case.feats, case.points, case.occ2img, case.level_weights, *settings),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_maps_sum_the_gradients_of_all_samplings(dtype: torch.dtype, device: str) -> None:
    check_shared_maps(dtype, device)


def test_shared_maps_in_double_precision() -> None:
    check_shared_maps(torch.float64, "cpu")


def check_shared_maps(dtype: torch.dtype, device: str) -> None:
    """Compare with autograd's sums, in the precision of the points and with one rounding."""
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    cases = [make_case(dtype=wide, seed=seed) for seed in range(3)]
    maps = [feat.to(device, dtype).requires_grad_() for feat in cases[0].feats]
    exact = [feat.detach().double().cpu().requires_grad_() for feat in maps]
    shared, total, expected = SharedMaps(maps), [], []
    for case in cases:
        given = [x.to(device) for x in (case.points, case.occ2img, case.level_weights)]
        given[0].requires_grad_()
        out = multi_view_sampling(shared, *given, case.img_hw, case.num_cams)
        plain = multi_view_sampling(maps, *given, case.img_hw, case.num_cams)
        assert torch.equal(out, plain)
        total.append(out.square().sum())
        theirs = multi_view_sampling_reference(
            exact, *(x.detach().double().cpu() for x in given), case.img_hw, case.num_cams
        )
        expected.append(theirs.square().sum())
    found = torch.autograd.grad(torch.stack(total).sum(), maps, retain_graph=True)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    for own, other in zip(
        found, torch.autograd.grad(torch.stack(expected).sum(), exact), strict=True
    ):
        assert own.dtype == dtype
        scale = float(other.abs().max())
        torch.testing.assert_close(
            own.double().cpu() / scale, other / scale, rtol=0, atol=tolerance
        )
    # Once more through the same graph, and a part of it: buffers start again.
    for own, other in zip(
        torch.autograd.grad(torch.stack(total).sum(), maps, retain_graph=True), found, strict=True
    ):
        torch.testing.assert_close(own, other)
    (first,) = torch.autograd.grad(total[0], maps[:1])
    case = cases[0]
    given = [x.to(device) for x in (case.points, case.occ2img, case.level_weights)]
    out = multi_view_sampling(maps, *given, case.img_hw, case.num_cams)
    torch.testing.assert_close(first, torch.autograd.grad(out.square().sum(), maps[:1])[0])


def test_shared_maps_without_gradients_are_plain() -> None:
    case = make_case()
    shared = SharedMaps(case.feats)
    assert shared.token is None
    assert torch.equal(multi_view_sampling(shared, *case[1:]), multi_view_sampling(*case))
    with torch.no_grad():
        assert SharedMaps([feat.requires_grad_() for feat in case.feats]).token is None
    with pytest.raises(ValueError, match=r"sums\[0\] must be"):
        torch.ops.opus.multi_view_sampling_backward_into(
            torch.zeros(2, 7, 2, 6, 4, dtype=torch.float64), case.feats, *case[1:4], *case.img_hw,
            case.num_cams, True, True, [torch.zeros_like(feat) for feat in case.feats],
        )  # fmt: skip
