"""Fuzzing of the native operations with invalid arguments.

A case starts from small valid arguments. Up to three of them are replaced: by another dtype,
another shape, other strides, values that are not finite or far out of range, or lists of another
length. Half of the calls use the functions of `models.ops`. The other half call the library's
operations directly, which must validate their arguments too.

Arguments that determine the size of a result (`num_voxels`, `num_samples`) stay small, because the
caller is responsible for the memory of a requested size.
"""

from __future__ import annotations

import dataclasses
import io
import math
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from models import ops
from models.ops._extension import native

Call = Callable[[], object]
Arguments = list[Any]

#: Errors that a call may raise.
ALLOWED: tuple[type[BaseException], ...] = (ValueError, TypeError, RuntimeError)
#: Additional memory that a call may use, MiB.
MEMORY_MIB = 1024
#: Time limit of a call, seconds.
SECONDS = 30.0

_INTS = (-(2**63), -(2**31), -1, 0, 1, 2, 7, 255, 256, 2**31 - 1, 2**31, 2**33, 2**62, 2**63 - 1)
_FLOATS = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-320, 1e-30, 0.5, 500.0, 1e30, 1e308)
_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64,
    torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip


def cases(seed: int) -> Iterator[tuple[str, Call]]:
    """Yield an endless stream of named calls, determined by the seed."""
    number = 0
    while True:
        rng = random.Random(f"{seed}/{number}")
        name = rng.choice(sorted(_BUILDERS))
        function, arguments = _BUILDERS[name](rng)
        changes = []
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            position = rng.randrange(len(arguments))
            arguments[position], change = _replace(rng, arguments[position])
            changes.append(f"argument {position} {change}")
        yield f"{name}({', '.join(changes)})", _guarded(function, arguments, rng.random() < 0.5)
        number += 1


def _guarded(function: Callable[..., object], arguments: Arguments, backward: bool) -> Call:
    def call() -> object:
        try:
            result = function(*arguments)
            if backward:
                with warnings.catch_warnings():
                    # Operations without a gradient raise an error here.
                    warnings.simplefilter("ignore")
                    _differentiate(result)
        except RuntimeError as error:
            if "INTERNAL ASSERT FAILED" in str(error):
                raise AssertionError(str(error).splitlines()[0]) from error
            raise
        return result

    return call


def _differentiate(result: object) -> None:
    tensors = result if isinstance(result, (tuple, list)) else [result]
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            tensor.sum().backward(retain_graph=True)


# Replacement of arguments.


def _replace(rng: random.Random, value: Any) -> tuple[Any, str]:
    """Return an invalid replacement for a value, and a description of the change."""
    if isinstance(value, Tensor):
        return _replace_tensor(rng, value)
    if isinstance(value, bool) or value is None or isinstance(value, torch.dtype):
        return value, "as it is"
    if isinstance(value, int):
        number = rng.choice(_INTS)
        return number, f"= {number}"
    if isinstance(value, float):
        real = rng.choice(_FLOATS)
        return real, f"= {real}"
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return _replace_list(rng, value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        field = rng.choice([f.name for f in dataclasses.fields(value)])
        part, change = _replace(rng, getattr(value, field))
        return dataclasses.replace(value, **{field: part}), f".{field} {change}"
    if hasattr(value, "_fields"):
        field = rng.choice(value._fields)
        part, change = _replace(rng, getattr(value, field))
        return value._replace(**{field: part}), f".{field} {change}"
    return value, "as it is"


def _replace_list(rng: random.Random, value: list[Any] | tuple[Any, ...]) -> tuple[Any, str]:
    items = list(value)
    kind = rng.choice(("shorter", "empty", "longer", "item"))
    if kind == "shorter":
        return items[:-1], "shorter"
    if kind == "empty" or not items:
        return [], "empty"
    if kind == "longer":
        return [*items, *items[-1:]], "longer"
    position = rng.randrange(len(items))
    items[position], change = _replace(rng, items[position])
    return items, f"[{position}] {change}"


def _replace_tensor(rng: random.Random, tensor: Tensor) -> tuple[Tensor, str]:
    tensor = tensor.detach()
    kinds = [_other_dtype, _other_dims, _other_size, _other_strides, _odd_values, _odd_values]
    changed, change = rng.choice(kinds)(rng, tensor)
    if changed.is_floating_point() and rng.random() < 0.5:
        changed.requires_grad_(True)
    return changed, change


def _other_dtype(rng: random.Random, tensor: Tensor) -> tuple[Tensor, str]:
    dtype = rng.choice(_DTYPES)
    return tensor.to(dtype), str(dtype)


def _other_dims(rng: random.Random, tensor: Tensor) -> tuple[Tensor, str]:
    kind = rng.choice(("flat", "another axis", "scalar", "one axis less"))
    if kind == "flat":
        return tensor.flatten(), kind
    if kind == "another axis":
        return tensor[None], kind
    if kind == "scalar" or tensor.dim() == 0 or 0 in tensor.shape:
        return tensor.new_zeros(()), "scalar"
    return tensor[0], kind


def _other_size(rng: random.Random, tensor: Tensor) -> tuple[Tensor, str]:
    if tensor.dim() == 0:
        return tensor[None], "[1]"
    axis = rng.randrange(tensor.dim())
    size = rng.choice((0, 1, tensor.shape[axis] - 1, tensor.shape[axis] + 1))
    index = torch.arange(max(size, 0)) % max(tensor.shape[axis], 1)
    if tensor.shape[axis] == 0:
        shape = list(tensor.shape)
        shape[axis] = max(size, 0)
        return tensor.new_zeros(shape), f"{shape}"
    return tensor.index_select(axis, index), f"size {size} along {axis}"


def _other_strides(rng: random.Random, tensor: Tensor) -> tuple[Tensor, str]:
    if tensor.dim() == 0 or tensor.numel() == 0:
        return tensor, "as it is"
    kind = rng.choice(("turned", "apart", "expanded"))
    if kind == "turned":
        axes = list(range(tensor.dim()))
        rng.shuffle(axes)
        back = [axes.index(axis) for axis in range(tensor.dim())]
        return tensor.permute(axes).contiguous().permute(back), kind
    if kind == "apart":
        return tensor.repeat_interleave(2, dim=-1)[..., ::2], kind
    return tensor[:1].expand(tensor.shape), kind


def _odd_values(rng: random.Random, tensor: Tensor) -> tuple[Tensor, str]:
    changed = tensor.clone()
    if changed.numel() == 0 or changed.dtype in (torch.bool, torch.complex64):
        return changed, "as it is"
    if changed.is_floating_point():
        value: float = rng.choice(_FLOATS)
        value = value if math.isnan(value) else max(min(value, _largest(changed)), -math.inf)
    else:
        limits = torch.iinfo(changed.dtype)
        value = rng.choice([v for v in _INTS if limits.min <= v <= limits.max])
    flat = changed.view(-1) if changed.is_contiguous() else changed.reshape(-1)
    if rng.random() < 0.3:
        flat.fill_(value)
    else:
        flat[rng.randrange(len(flat))] = value
    return flat.view(changed.shape), f"with {value}"


def _largest(tensor: Tensor) -> float:
    return math.inf if tensor.dtype == torch.float64 else float(torch.finfo(tensor.dtype).max)


# Valid arguments: one function per operation.

Built = tuple[Callable[..., object], Arguments]


def _randn(rng: random.Random, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randn(shape, generator=generator, dtype=dtype)


def _randint(rng: random.Random, low: int, high: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randint(low, max(high, low + 1), shape, generator=generator)


def _grids(rng: random.Random, number: int) -> Tensor:
    shape = [number, *(rng.choice((1, 3, 4, 9, 17)) for _ in range(3))]
    occupied = _randn(rng, *shape) > 1
    return torch.where(occupied, _randint(rng, 0, 3, *shape), 3).to(torch.uint8)


def _adaptive_mixing(rng: random.Random) -> Built:
    n, s_in, c, s_out = (rng.choice(sizes) for sizes in ((0, 1, 5), (1, 8, 12), (4, 16), (3, 32)))
    sampled, parameters = _randn(rng, n, s_in, c), _randn(rng, n, c * c + s_out * s_in)
    if rng.random() < 0.5:
        return ops.adaptive_mixing, [sampled, parameters, s_out]
    if rng.random() < 0.5:
        return native("adaptive_mixing"), [sampled, parameters, s_out]
    grad = _randn(rng, n, s_out, c)
    return native("adaptive_mixing_backward"), [grad, sampled, parameters, s_out]


def _chamfer_terms(rng: random.Random) -> Built:
    n, m = rng.choice((0, 1, 9)), rng.choice((1, 7))
    arguments = [_randn(rng, n, 3), _randn(rng, m, 3), _randint(rng, 0, m, n), 0.2]
    if rng.random() < 0.5:
        return ops.chamfer_terms, arguments
    return native("chamfer_terms_backward"), [_randn(rng, n), *arguments, True, True]


def _distance_attention(rng: random.Random) -> Built:
    b, h, q, d = (rng.choice(sizes) for sizes in ((1, 2), (1, 4), (1, 9, 70), (4, 8, 33)))
    qkv = [_randn(rng, b, h, q, d) for _ in range(3)]
    arguments = [*qkv, _randn(rng, b, h, q), 10 * _randn(rng, b, q, 3)]
    if rng.random() < 0.6:
        function = ops.distance_attention if rng.random() < 0.5 else native("distance_attention")
        seeds, order = _randint(rng, 0, 2**40, b), torch.arange(q).expand(b, q)
        return function, [*arguments, rng.choice((0.0, 0.1)), seeds, rng.choice((None, order))]
    if rng.random() < 0.3:
        return native("attention_order"), [arguments[-1]]
    out, log_sum = native("distance_attention")(*arguments, 0.0, None, None)
    return native("distance_attention_backward"), [
        torch.ones_like(out), *arguments, out, log_sum, 0.0, None, None,
    ]  # fmt: skip


def _farthest_point_sampling(rng: random.Random) -> Built:
    lengths = [rng.choice((1, 5, 200)) for _ in range(rng.choice((1, 2)))]
    points = _randn(rng, sum(lengths), 3)
    if rng.random() < 0.5:
        count = rng.choice((0, 1, 20, 300))
        return (lambda p, own: ops.farthest_point_sampling(p, count, own)), [points, lengths]
    count = rng.choice((-1, 0, 5, 2**50))
    return native("farthest_point_sampling"), [points, lengths, _Fixed(count)]


def _multi_view_sampling(rng: random.Random) -> Built:
    b, q, g, p = rng.choice((1, 2)), rng.choice((1, 6)), rng.choice((1, 4)), rng.choice((1, 3))
    cams, frames, channels = rng.choice((1, 6)), rng.choice((1, 2)), 4 * rng.choice((4, 8))
    images = cams * frames
    feats = [_randn(rng, b, images, channels, 8 >> i, 12 >> i) for i in range(rng.choice((1, 3)))]
    weights = _randn(rng, b, q, g, p, len(feats)).softmax(-1)
    tensors = [_randn(rng, b, q, g, p, 3), 5 * _randn(rng, b, images, 4, 4), weights]
    if rng.random() < 0.4:
        return ops.multi_view_sampling, [feats, *tensors, (32, 48), cams]
    if rng.random() < 0.5:
        return native("multi_view_sampling"), [feats, *tensors, 32, 48, cams, True]
    grad = _randn(rng, b, q, g, frames * p, channels // g)
    return native("multi_view_sampling_backward"), [
        grad, feats, *tensors, 32, 48, cams, False, True, True,
    ]  # fmt: skip


def _nearest_neighbor(rng: random.Random) -> Built:
    lengths = [[rng.choice((0, 1, 30)) for _ in range(2)], [rng.choice((1, 50)) for _ in range(2)]]
    query, reference = (_randn(rng, sum(own), 3) for own in lengths)
    kind = rng.choice(("function", "tree", "trees", "brute force"))
    if kind == "function":
        return ops.nearest_neighbor, [query, reference, *lengths]
    if kind == "brute force":
        return native("nearest_by_brute_force"), [query, reference]
    tree = native("point_tree")(reference, lengths[1], rng.random() < 0.5)
    if kind == "tree":
        return native("nearest_in_tree"), [query, lengths[0], _Fixed(tree), lengths[1]]
    of_query = native("point_tree")(query, lengths[0], False)
    return native("nearest_between_trees"), [
        _Fixed(of_query), lengths[0], _Fixed(tree), lengths[1], torch.float32,
    ]  # fmt: skip


def _point_tree(rng: random.Random) -> Built:
    lengths = [rng.choice((0, 1, 30, 900)) for _ in range(2)]
    return native("point_tree"), [_randn(rng, sum(lengths), 3), lengths, rng.random() < 0.5]


def _occupancy_masks(rng: random.Random) -> Built:
    grids = _grids(rng, rng.choice((0, 1, 2)))
    if rng.random() < 0.5:
        return native("occupancy_masks"), [grids, 3]
    masks = native("occupancy_masks")(grids, 3)
    return native("occupancy_masks_update_"), [masks, grids, 3, [0, 0, 0], list(grids.shape[1:])]


def _ray_cast(rng: random.Random) -> Built:
    grids = _grids(rng, rng.choice((1, 2)))
    origins, directions = 6 * _randn(rng, 3, 3), _randn(rng, 5, 3)
    tail: Arguments = [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    if rng.random() < 0.5:
        return ops.ray_cast, [grids, origins, directions, *tail, 3, 20.0]
    masks = native("occupancy_masks")(grids, 3)
    size = list(grids.shape[1:])
    return native("ray_cast"), [masks, size, origins, directions, *tail, 20.0, True]


def _ray_iou(rng: random.Random) -> Built:
    pred = _grids(rng, 2)
    gt = pred.roll(1, 1)
    origins = 4 * _randn(rng, 3, 3, dtype=torch.float64)
    rays: Arguments = [origins, _randint(rng, -1, 3, 3), _randn(rng, 7, 3), [0.0, -1.0, 0.0], 0.5]
    kind = rng.choice(("label_rays", "counts", "cached", "native"))
    if kind == "label_rays":
        return (ops.label_rays if rng.random() < 0.5 else native("label_rays")), [pred, *rays, 3]
    tail: Arguments = [3, rng.choice((4, 256)), [1.0, 2.0, 4.0]]
    if kind == "native":
        return native("ray_iou_counts"), [pred, gt, *rays, *tail, None, None]
    function: Callable[..., Any] = ops.label_rays
    truth = function(gt, *rays, 3) if kind == "cached" else gt
    return ops.ray_iou_counts, [pred, truth, *rays, *tail]


def _sigmoid_focal_loss(rng: random.Random) -> Built:
    n, k = rng.choice((0, 1, 40)), rng.choice((1, 17))
    rows = rng.choice((None, _randn(rng, n)))
    tensors = [_randn(rng, n, k), _randint(rng, -1, k + 1, n), _randn(rng, k), rows]
    if rng.random() < 0.6:
        return ops.sigmoid_focal_loss, [*tensors, 2.0, 0.25]
    return native("sigmoid_focal_loss_backward"), [torch.tensor(1.0), *tensors, 2.0, 0.25]


def _coords(rng: random.Random, shape: list[int]) -> Tensor:
    coords = (_randn(rng, 2, *shape) > 0.5).nonzero()
    return coords[torch.randperm(len(coords))] if rng.random() < 0.3 else coords


def _kernel_map(rng: random.Random) -> Built:
    shape = [rng.choice((1, 4, 7)) for _ in range(3)]
    settings: Arguments = [[3, 3, 3], [1, 1, 1], [1, 1, 1]]
    coords = _coords(rng, shape)
    if rng.random() < 0.5:
        return ops.build_kernel_map, [coords, shape, *settings, rng.random() < 0.5]
    return native("kernel_map"), [coords, shape, *settings, rng.random() < 0.5]


def _sparse_conv(rng: random.Random) -> Built:
    shape = [rng.choice((1, 4, 7)) for _ in range(3)]
    coords = _coords(rng, shape)
    kernel_map = ops.build_kernel_map(coords, shape, 3, 1, 1, rng.random() < 0.5)
    c_in, c_out = rng.choice((1, 4, 9)), rng.choice((2, 16, 18))
    features = _randn(rng, len(coords), c_in)
    weight, bias = _randn(rng, c_out, 3, 3, 3, c_in), _randn(rng, c_out)
    if rng.random() < 0.5:
        features.requires_grad_(True)
        weight.requires_grad_(True)
        return ops.sparse_conv, [features, weight, bias, kernel_map]
    pairs: Arguments = [kernel_map.pairs, kernel_map.pairs_by_in, kernel_map.starts]
    if rng.random() < 0.5:
        return native("sparse_conv"), [features, weight, bias, *pairs, kernel_map.num_out]
    grad = _randn(rng, kernel_map.num_out, c_out)
    return native("sparse_conv_backward"), [grad, features, weight, *pairs, True, True]


def _unique_voxels(rng: random.Random) -> Built:
    number = rng.choice((1, 64, 1000))
    function = ops.unique_voxels if rng.random() < 0.5 else native("unique_voxels")
    return function, [_randint(rng, 0, number, rng.choice((0, 1, 50))), _Fixed(number)]


def _voxel_max(rng: random.Random) -> Built:
    n, m, c = rng.choice((0, 1, 60)), rng.choice((1, 20)), rng.choice((0, 1, 9, 32))
    features = _randn(rng, n, c)
    voxel = _randint(rng, 0, m, n)
    if rng.random() < 0.5:
        return ops.voxel_max, [features.requires_grad_(True), voxel, _Fixed(rng.choice((m, -1)))]
    if rng.random() < 0.5:
        return native("voxel_max"), [features, voxel, _Fixed(rng.choice((m, -1, 2**50))), True]
    winner = native("voxel_max")(features, voxel, m, True)[1]
    return native("voxel_max_backward"), [_randn(rng, m, c), winner, _Fixed(rng.choice((n, 0)))]


def _voxel_light(rng: random.Random) -> Built:
    drawn = _grids(rng, 1)[0] != 3
    function = ops.voxel_light if rng.random() < 0.5 else native("voxel_light")
    return function, [drawn, drawn.clone(), [0.4, -0.3]]


def _voxel_sets(rng: random.Random) -> Built:
    shape = [rng.choice((1, 3, 40)) for _ in range(3)]
    grids, kernel = rng.choice((1, 2)), [rng.choice((1, 2, 3)) for _ in range(3)]
    stride, padding = [rng.choice((1, 2)) for _ in range(3)], [rng.choice((0, 1)) for _ in range(3)]
    keys = _randint(rng, -3, grids * math.prod(shape) + 3, rng.choice((0, 1, 30)))
    fixed = [_Fixed(value) for value in (grids, shape, kernel, stride, padding)]
    capacity = _Fixed(rng.choice((None, [5, 20])))
    if rng.random() < 0.4:
        return native("voxel_sets"), [keys, *fixed, capacity]
    sets = native("voxel_sets")(keys, grids, shape, kernel, stride, padding, None)
    (inputs, outputs), words, up_to = sets[:3]
    of_inputs = rng.random() < 0.5
    rows, other = (inputs, 1) if of_inputs else (outputs, 0)
    size = len(outputs if of_inputs else inputs)
    return native("voxel_neighbors"), [
        rows, shape, kernel, stride, padding, of_inputs, grids, words[other], up_to[other], 0,
        _Fixed(size),
    ]  # fmt: skip


def _voxel_shading(rng: random.Random) -> Built:
    labels = _grids(rng, 1)
    drawn = labels[0] != 3
    light, albedo = ops.voxel_light(drawn, drawn, [0.4, -0.3]), _randn(rng, 4, 3).sigmoid()
    rays = torch.nn.functional.normalize(_randn(rng, rng.choice((1, 5, 20)), 7, 3), dim=-1)
    background = _randn(rng, len(rays), 3).sigmoid()
    brightness = [[0.8, 0.2] for _ in range(6)]
    position, rotation = [2.0, 2.0, 2.0], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    wanted = rng.choice((None, _randn(rng, len(rays), 7) > 0))
    edges, fog = (0.5, 1.0, 1.0), (0.3, 2.0, 9.0)
    if rng.random() < 0.5:
        pyramid = ops.OccupancyPyramid(labels, 3)
        low, size = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
        scene = ops.VoxelScene(pyramid, light, albedo, brightness, 0.5, low, size)
        view = ops.VoxelView(position, rotation, 30.0, edges, fog)
        return ops.voxel_shading, [scene, view, rays, background, wanted]
    masks = native("occupancy_masks")(labels, 3)
    numbers: Arguments = [
        [b for row in brightness for b in row], 0.5, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0],
        [*position, *(c for row in rotation for c in row), 30.0], list(edges), list(fog),
    ]  # fmt: skip
    return native("voxel_shading"), [
        masks, labels[0], 3, light, albedo, rays, wanted, background, *numbers,
    ]  # fmt: skip


def _winograd_conv(rng: random.Random) -> Built:
    images, height, width = rng.choice((0, 1, 2)), rng.choice((1, 4, 9)), rng.choice((3, 8))
    c_in, c_out = rng.choice((16, 32, 9)), rng.choice((16, 48, 0))
    x, bias = _randn(rng, images, c_in, height, width), _randn(rng, c_out)
    if rng.random() < 0.5:
        x.requires_grad_(True)
        return ops.winograd_conv, [x, _randn(rng, c_out, c_in, 3, 3), bias]
    if rng.random() < 0.5:
        return native("winograd_conv"), [x, _randn(rng, 36, c_in, c_out), bias]
    return native("winograd_weight_grad"), [x, _randn(rng, images, c_out, height, width)]


def _resize_crop(rng: random.Random) -> Built:
    image = torch.randint(0, 256, (rng.choice((1, 9, 30)), rng.choice((1, 8, 41)), 3))
    out = torch.zeros(rng.choice((1, 7)), rng.choice((1, 12)), 3, dtype=torch.uint8)
    wraps = rng.random() < 0.5
    function = ops.resize_crop if wraps else native("resize_crop")
    method = rng.choice(("linear", "cubic", "exact") if wraps else (0, 1, 2))
    full, crop = list(image.shape[:2]), [rng.choice((-3, 0, 2)), 1]
    return function, [
        out, image.to(torch.uint8), full, [0, 0], [9, 13], crop, True, _Fixed(method),
    ]  # fmt: skip


def _jpeg_window(rng: random.Random) -> Built:
    data = torch.randint(0, 256, (rng.choice((0, 3, 200)),)).to(torch.uint8)
    if len(data) > 3:
        data[:4] = torch.tensor([0xFF, 0xD8, 0xFF, 0xE0])
    return native("jpeg_window"), [data, rng.choice((1, 2, 4, 8)), [0, 10], [0, 10]]


def _jpeg_crop(rng: random.Random) -> Built:
    pixels = torch.randint(0, 256, (24, 40, 3), dtype=torch.uint8).numpy()
    buffer = io.BytesIO()
    options = dict(quality=rng.choice((40, 95)), subsampling=rng.choice((0, 1, 2)))
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    data = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    for _ in range(rng.choice((0, 0, 1, 5))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    out = torch.zeros(8, 12, 3, dtype=torch.uint8)
    numbers = [rng.choice((1, 2, 4, 8)), [24, 40], 0, [12, 20], [2, 3], False, rng.choice((0, 1))]
    return native("jpeg_crop"), [out, data, *numbers]


class _Fixed:
    """An argument that is not replaced: bytes that only the library creates, or a size."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _with_fixed(builder: Callable[[random.Random], Built]) -> Callable[[random.Random], Built]:
    def build(rng: random.Random) -> Built:
        function, arguments = builder(rng)

        def call(*replaced: Any) -> object:
            return function(*(a.value if isinstance(a, _Fixed) else a for a in replaced))

        return call, arguments

    return build


_BUILDERS: dict[str, Callable[[random.Random], Built]] = {
    builder.__name__.lstrip("_"): _with_fixed(builder)
    for builder in (
        _adaptive_mixing, _chamfer_terms, _distance_attention, _farthest_point_sampling,
        _jpeg_crop, _jpeg_window, _kernel_map, _multi_view_sampling, _nearest_neighbor,
        _occupancy_masks, _point_tree, _ray_cast, _ray_iou, _resize_crop, _sigmoid_focal_loss,
        _sparse_conv, _unique_voxels, _voxel_light, _voxel_max, _voxel_sets, _voxel_shading,
        _winograd_conv,
    )
}  # fmt: skip
