"""Sampling of multi-scale features of several cameras and frames at 3-D points.

Dimensions:
    B batch, T frames (current first), N cameras of a frame, L pyramid levels, C channels,
    Q queries, G groups, P points per group, c = C / G, S = Q * G * P.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._extension import native, on_load, runs_natively

__all__ = ["SharedMaps", "multi_view_sampling", "multi_view_sampling_reference"]

# Points nearer to a camera's plane than this, in the unit of depth (metres), are invalid.
_MIN_DEPTH = 1e-5
_PAIRINGS = ("published", "straight")
_DTYPES = (torch.float32, torch.float64)


class SharedMaps:
    """Feature maps that are sampled several times and whose gradients are summed in one buffer.

    All samplings add to the same buffers, in the dtype of the points. 16-bit maps are therefore
    rounded once for all samplings, and the buffers are zeroed once. Without gradients, and under
    `torch.compile`, this is a plain list of maps.

    Args:
        feats: L maps, as `multi_view_sampling` takes them.
    """

    def __init__(self, feats: Sequence[Tensor]) -> None:
        self.feats = tuple(feats)
        self.sums = _MapSums([feat.detach() for feat in feats])
        self.token: Tensor | None = None  # links all samplings to the maps in the graph
        learns = torch.is_grad_enabled() and any(feat.requires_grad for feat in feats)
        if learns and not torch.compiler.is_compiling():
            self.token = _GiveSums.apply(self.sums, *self.feats)

    def __len__(self) -> int:
        return len(self.feats)

    def __getitem__(self, level: int) -> Tensor:
        return self.feats[level]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.feats)


class _MapSums:
    """The buffers. Nodes of the graph refer to them, so they must not refer to the graph."""

    def __init__(self, feats: list[Tensor]) -> None:
        self.feats = feats
        self._sums: list[Tensor] | None = None

    def add_to(self, points: Tensor) -> list[Tensor]:
        """Return the buffers, zero at first."""
        if self._sums is None:
            self._sums = []
            for feat in self.feats:
                shape = (*feat.shape[:2], *feat.shape[3:], feat.shape[2])
                self._sums.append(points.new_zeros(shape).permute(0, 1, 4, 2, 3))
        return self._sums

    def take(self) -> list[Tensor | None]:
        """Return the sums in the dtype of the maps, and reset them."""
        sums, self._sums = self._sums, None
        if sums is None:
            return [None] * len(self.feats)
        return [own.to(feat.dtype) for own, feat in zip(sums, self.feats, strict=True)]


class _GiveSums(torch.autograd.Function):
    """Node that returns the summed gradients of the maps after all samplings."""

    @staticmethod
    def forward(ctx: Any, sums: _MapSums, *feats: Tensor) -> Tensor:  # type: ignore[override]
        ctx.sums = sums
        return feats[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, *ctx.sums.take()


class _SharedSampling(torch.autograd.Function):
    """Sampling that adds the gradients of the maps to the shared buffers."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, token: Tensor, points: Tensor, level_weights: Tensor, occ2img: Tensor,
        sums: _MapSums, settings: tuple,
    ) -> Tensor:  # fmt: skip
        ctx.sums, ctx.settings = sums, settings
        ctx.save_for_backward(points, level_weights, occ2img)
        return native("multi_view_sampling")(sums.feats, points, occ2img, level_weights, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        points, level_weights, occ2img = ctx.saved_tensors
        feats = ctx.sums.feats
        need_points, need_weights = ctx.needs_input_grad[1:3]
        grad_points, grad_weights = native("multi_view_sampling_backward_into")(
            grad, feats, points, occ2img, level_weights, *ctx.settings,
            need_points or need_weights, ctx.sums.add_to(points),
        )  # fmt: skip
        return (
            feats[0].new_zeros(()),
            grad_points if need_points else None,
            grad_weights if need_weights else None,
            None, None, None,
        )  # fmt: skip


def multi_view_sampling(
    feats: Sequence[Tensor] | SharedMaps,
    points: Tensor,
    occ2img: Tensor,
    level_weights: Tensor,
    img_hw: tuple[int, int],
    num_cams: int,
    pairing: str = "published",
) -> Tensor:
    """Sample image features at 3-D points: one camera per frame, a weighted sum over levels.

    The same points are projected into every frame (OPUS, arXiv 2409.09350, "consistent point
    sampling"). A point is valid in a camera if its depth exceeds 1e-5 m and its pixel is inside
    the image, borders excluded. Of a frame's cameras, the valid one with the lowest number is
    sampled. If none is valid, camera 0 is sampled with the depth clamped to 1e-5. Sampling is
    bilinear with `align_corners=True` and zero padding. Group g has the channels
    `[g * c, (g + 1) * c)`.

    `pairing='published'`: at frame t, group g is weighted with the level weights of group
    `(t * G + g) // T`, as the published checkpoints expect; `'straight'`: with its own.

    A level contributes zero if all four texels are outside of it, for any weight. Non-finite points
    also contribute zero and receive no gradient. Non-finite texels and weights that are used make
    the output non-finite.

    Projection, choice of camera, sampling and weighting are one pass, without intermediate tensors.
    Results are bitwise reproducible for any number of threads, and so are gradients on the CPU. On
    a GPU, atomic additions sum the gradients of the maps; under
    `torch.use_deterministic_algorithms` they are accumulated in fixed point and are reproducible.
    float64 uses the reference implementation there.

    Args:
        feats: L maps [B, T*N, C, h_l, w_l], with any strides. Channels-last maps and large maps
            are read in place; small maps of other layouts are copied first. They have the dtype of
            `points`, or float16 or bfloat16 with float32 points; sums are in the dtype of `points`.
            Pass `SharedMaps` if the maps are sampled several times.
        points: [B, Q, G, P, 3], metres, occ frame; float32 or float64, as the other tensors.
        occ2img: [B, T*N, 4, 4], frame-major (index `t * N + n`). Not differentiable.
        level_weights: [B, Q, G, P, L], after the softmax.
        img_hw: height and width, in pixels, of the images that `occ2img` refers to.
        num_cams: N.
        pairing: see above.

    Returns:
        [B, Q, G, T*P, c] in the dtype of `points`, frame-major (index `t * P + p`).
        Differentiable in `feats`, `points` and `level_weights`.

    Raises:
        ValueError: shapes or dtypes do not fit together, or `pairing` is unknown.
        ExtensionError: the native extension is not built.
    """
    maps = feats.feats if isinstance(feats, SharedMaps) else feats
    _check_arguments(maps, points, occ2img, level_weights, num_cams, pairing)
    if not runs_natively("multi_view_sampling", points, on_gpu=(torch.float32,)):
        return multi_view_sampling_reference(
            maps, points, occ2img, level_weights, img_hw, num_cams, pairing
        )
    height, width = img_hw
    settings = (int(height), int(width), num_cams, pairing == "published")
    if isinstance(feats, SharedMaps) and feats.token is not None:
        inputs = (feats.token, points, level_weights, occ2img)
        return _SharedSampling.apply(*inputs, feats.sums, settings)
    return native("multi_view_sampling")(list(maps), points, occ2img, level_weights, *settings)


def multi_view_sampling_reference(
    feats: Sequence[Tensor] | SharedMaps,
    points: Tensor,
    occ2img: Tensor,
    level_weights: Tensor,
    img_hw: tuple[int, int],
    num_cams: int,
    pairing: str = "published",
) -> Tensor:
    """Compute `multi_view_sampling` in plain torch (reference implementation)."""
    feats = feats.feats if isinstance(feats, SharedMaps) else feats
    _check_arguments(feats, points, occ2img, level_weights, num_cams, pairing)
    B, Q, G, P, _ = points.shape
    T = occ2img.shape[1] // num_cams
    camera, pixel, finite = project_to_frames(
        points.reshape(B, Q * G * P, 3), occ2img, img_hw, num_cams
    )

    frames = torch.arange(T, device=points.device)
    groups = torch.arange(G, device=points.device)
    paired = (frames[:, None] * G + groups) // T if pairing == "published" else groups.expand(T, G)
    # [B, Q, T, G, P, L] -> [B, T, S, L]
    weights = level_weights[:, :, paired].transpose(1, 2).reshape(B, T, Q * G * P, len(feats))
    group_of_point = (torch.arange(Q * G * P, device=points.device) // P) % G

    out = points.new_zeros(B, T, Q * G * P, feats[0].shape[2] // G)
    for level, feat in enumerate(feats):
        out = _add_level(
            out, feat, weights[..., level], camera, group_of_point, pixel, finite, img_hw, num_cams,
            G,
        )  # fmt: skip
    # [B, T, Q, G, P, c] -> [B, Q, G, T * P, c]
    return out.unflatten(2, (Q, G, P)).permute(0, 2, 3, 1, 4, 5).flatten(3, 4)


def project_to_frames(
    points: Tensor, occ2img: Tensor, img_hw: tuple[int, int], num_cams: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the camera and the pixel that `multi_view_sampling` uses in every frame.

    Args:
        points: [B, S, 3], metres, occ frame.
        occ2img: [B, T*N, 4, 4].
        img_hw: height and width of the images in pixels.
        num_cams: N.

    Returns:
        Camera int64 [B, T, S], pixel (u, v) [B, T, S, 2] in it, and whether that is finite.
    """
    height, width = img_hw
    matrix = occ2img.unflatten(1, (-1, num_cams))[:, :, :, None]  # [B, T, N, 1, 4, 4]
    x, y, z = points[:, None, None].unbind(-1)  # [B, 1, 1, S]

    # Not a matrix product: the native kernel rounds in the same way and chooses the same cameras.
    def transform(m: Tensor, *point: Tensor) -> list[Tensor]:
        x, y, z = point
        return [m[..., i, 0] * x + m[..., i, 1] * y + m[..., i, 2] * z + m[..., i, 3]
                for i in range(3)]  # fmt: skip

    with torch.no_grad():
        row = transform(matrix, x, y, z)
        depth = row[2].clamp(min=_MIN_DEPTH)
        u, v = row[0] / depth, row[1] / depth
        valid = (row[2] > _MIN_DEPTH) & (u > 0) & (u < width) & (v > 0) & (v < height)
        camera = valid.to(torch.uint8).argmax(dim=2, keepdim=True)  # the first maximum
        finite = (u.isfinite() & v.isfinite()).gather(2, camera)[:, :, 0]
    camera = camera[:, :, 0]
    # Replaced before the products and the division: a gradient of zero times infinity would be NaN.
    batch, frame = (torch.arange(n, device=points.device) for n in camera.shape[:2])
    chosen = matrix[batch[:, None, None], frame[:, None], camera, 0]  # [B, T, S, 4, 4]
    chosen = torch.where(finite[..., None, None], chosen, 0.0)
    u, v, w = transform(chosen, x[:, :, 0], y[:, :, 0], z[:, :, 0])
    depth = torch.where(finite, w, 1.0).clamp(min=_MIN_DEPTH)
    pixel = torch.stack([torch.where(finite, value, 0.0) / depth for value in (u, v)], -1)
    return camera, pixel, finite


def _add_level(
    out: Tensor,
    feat: Tensor,
    level_weights: Tensor,
    camera: Tensor,
    group_of_point: Tensor,
    pixel: Tensor,
    finite: Tensor,
    img_hw: tuple[int, int],
    num_cams: int,
    num_groups: int,
) -> Tensor:
    """Add one level, sampled at pixels of the chosen cameras, with weights [B, T, S].

    Texels are added one by one, so that sums overflow as in the native kernel. Returns
    [B, T, S, c].
    """
    B, _, C, h, w = feat.shape
    T = camera.shape[1]
    maps = feat.to(pixel.dtype).reshape(B, T, num_cams, num_groups, C // num_groups, h, w)
    batch = torch.arange(B, device=feat.device)[:, None, None]
    frame = torch.arange(T, device=feat.device)[None, :, None]

    x, y = pixel[..., 0] / img_hw[1] * (w - 1), pixel[..., 1] / img_hw[0] * (h - 1)
    inside = finite & (x > -1) & (x < w) & (y > -1) & (y < h)
    x, y, level_weights = (torch.where(inside, value, 0.0) for value in (x, y, level_weights))
    x0, y0 = x.detach().floor(), y.detach().floor()
    fx, fy = x - x0, y - y0

    corners = ((0, 0, (1 - fx) * (1 - fy)), (1, 0, fx * (1 - fy)), (0, 1, (1 - fx) * fy),
               (1, 1, fx * fy))  # fmt: skip
    for dx, dy, weight in corners:
        xi, yi = x0.long() + dx, y0.long() + dy
        exists = inside & (xi >= 0) & (xi < w) & (yi >= 0) & (yi < h)
        value = maps[
            batch, frame, camera, group_of_point, :, yi.clamp(0, h - 1), xi.clamp(0, w - 1)
        ]
        value = torch.where(inside[..., None], value, 0.0)
        out = out + (level_weights * torch.where(exists, weight, 0.0))[..., None] * value
    return out


def _check_arguments(
    feats: Sequence[Tensor],
    points: Tensor,
    occ2img: Tensor,
    level_weights: Tensor,
    num_cams: int,
    pairing: str,
) -> None:
    if pairing not in _PAIRINGS:
        raise ValueError(f"pairing must be one of {_PAIRINGS}, got {pairing!r}")
    if points.dim() != 5 or points.shape[-1] != 3:
        raise ValueError(f"points must be [B, Q, G, P, 3], got {list(points.shape)}")
    B, Q, G, P, _ = points.shape
    if occ2img.dim() != 4 or occ2img.shape[0] != B or occ2img.shape[2:] != (4, 4):
        raise ValueError(f"occ2img must be [{B}, T*N, 4, 4], got {list(occ2img.shape)}")
    images = occ2img.shape[1]
    if num_cams < 1 or images < 1 or images % num_cams:
        raise ValueError(
            f"occ2img must hold a multiple of num_cams={num_cams} images, got {images}"
        )
    if not feats:
        raise ValueError("feats must have at least one level, got none")
    channels = feats[0].shape[2] if feats[0].dim() == 5 else -1
    for level, feat in enumerate(feats):
        if feat.dim() != 5 or feat.shape[:3] != (B, images, channels) or 0 in feat.shape[3:]:
            raise ValueError(
                f"feats[{level}] must be [{B}, {images}, {max(channels, 0) or 'C'}, h, w], got "
                f"{list(feat.shape)}"
            )
    if channels % max(G, 1) or G < 1:
        raise ValueError(f"the {channels} channels of feats do not divide into G={G} groups")
    if level_weights.shape != (B, Q, G, P, len(feats)):
        raise ValueError(
            f"level_weights must be {[B, Q, G, P, len(feats)]}, got {list(level_weights.shape)}"
        )
    dtype = points.dtype
    if dtype not in _DTYPES or any(x.dtype != dtype for x in (occ2img, level_weights)):
        raise ValueError(
            "points, occ2img and level_weights must share float32 or float64, got "
            f"{dtype}, {occ2img.dtype} and {level_weights.dtype}"
        )
    allowed = {dtype, torch.float16, torch.bfloat16} if dtype == torch.float32 else {dtype}
    if len({x.dtype for x in feats}) != 1 or feats[0].dtype not in allowed:
        raise ValueError(
            f"feats must all be one of {sorted(map(str, allowed))} for points of {dtype}, got "
            f"{[str(x.dtype) for x in feats]}"
        )


@on_load
def _register() -> None:
    @torch.library.register_fake("opus::multi_view_sampling")
    def _(
        feats: list[Tensor], points: Tensor, occ2img: Tensor, level_weights: Tensor,
        img_h: int, img_w: int, num_cams: int, permuted: bool,
    ) -> Tensor:  # fmt: skip
        B, Q, G, P, _ = points.shape
        T = occ2img.shape[1] // num_cams
        return points.new_empty((B, Q, G, T * P, feats[0].shape[2] // G))

    @torch.library.register_fake("opus::multi_view_sampling_backward")
    def _(
        grad: Tensor, feats: list[Tensor], points: Tensor, occ2img: Tensor, level_weights: Tensor,
        img_h: int, img_w: int, num_cams: int, permuted: bool, need_feats: bool,
        need_points: bool,
    ) -> tuple[list[Tensor], Tensor, Tensor]:  # fmt: skip
        grad_feats = [
            feat.new_empty(
                (*feat.shape[:2], *feat.shape[3:], feat.shape[2])
            ).permute(0, 1, 4, 2, 3)
            for feat in feats
        ] if need_feats else []  # fmt: skip
        points_shape = points.shape if need_points else (0,)
        weights_shape = level_weights.shape if need_points else (0,)
        return grad_feats, points.new_empty(points_shape), points.new_empty(weights_shape)

    @torch.library.register_fake("opus::multi_view_sampling_backward_into")
    def _(
        grad: Tensor, feats: list[Tensor], points: Tensor, occ2img: Tensor, level_weights: Tensor,
        img_h: int, img_w: int, num_cams: int, permuted: bool, need_points: bool,
        sums: list[Tensor],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        points_shape = points.shape if need_points else (0,)
        weights_shape = level_weights.shape if need_points else (0,)
        return points.new_empty(points_shape), points.new_empty(weights_shape)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        feats, points, occ2img, level_weights, *ctx.settings = inputs
        ctx.save_for_backward(points, occ2img, level_weights, *feats)

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        points, occ2img, level_weights, *feats = ctx.saved_tensors
        need_feats, need_points, _, need_weights = ctx.needs_input_grad[:4]
        need_feats = any(need_feats) if isinstance(need_feats, (list, tuple)) else need_feats
        grad_feats, grad_points, grad_weights = torch.ops.opus.multi_view_sampling_backward(
            grad, feats, points, occ2img, level_weights, *ctx.settings,
            need_feats, need_points or need_weights,
        )  # fmt: skip
        return (
            grad_feats if need_feats else [None] * len(feats),
            grad_points if need_points else None,
            None,
            grad_weights if need_weights else None,
            *([None] * len(ctx.settings)),
        )

    torch.library.register_autograd(
        "opus::multi_view_sampling", backward, setup_context=setup_context
    )
