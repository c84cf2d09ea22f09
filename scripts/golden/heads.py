"""Check of a head: outputs, predictions, losses and gradients.

Dimension letters: B batch, T frames, N cameras, L pyramid levels, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.overrides import TorchFunctionMode

import models.register
from models.heads import CameraGeometry, HeadOutput, LidarInput, OccupancyHead
from scripts.golden.report import (
    Check,
    GoldenFile,
    GoldenFileError,
    absolute,
    quantile,
    relative,
)
from scripts.runtime.operations import plain_operations

KINDS = ("v1", "v1_fusion", "v2", "v2_dcd")


@dataclass(frozen=True)
class HeadCase:
    """A head with the weights and inputs of a file, in one precision."""

    head: OccupancyHead
    mlvl_feats: list[Tensor]
    geometry: CameraGeometry
    lidar: LidarInput | None = None
    samples: list[BaseDataElement] = field(default_factory=list)

    def run(self) -> HeadOutput:
        """Run the head in its current mode."""
        output: HeadOutput = self.head(self.mlvl_feats, self.geometry, self.lidar)
        return output


def head_config(golden: GoldenFile) -> dict[str, Any]:
    """Return the configuration of a file's head.

    Raises:
        GoldenFileError: The kind of head is not supported.
    """
    meta = json.loads(golden["meta/config"].tobytes())
    kind = meta["kind"]
    if kind not in KINDS:
        raise GoldenFileError(f"heads of the kind {kind!r} are not supported")
    decoder = dict(
        type="OPUSDecoder",
        num_refines=meta["num_refines"],
        num_points=meta["num_points"],
        dropout=0.0,
    )
    if kind.startswith("v2"):
        head = dict(
            type="CPDHead",
            point_channels=meta["num_pt_channels"],
            densifier=dict(type="CPDDensifier", pfn_channels=meta["pfn_channels"]),
        )
    else:
        head = dict(type="PointHead", use_lidar=kind == "v1_fusion")
        decoder["sampling_pattern"] = "scaled_offset"
    if kind == "v1_fusion":
        decoder["mixed_points"] = None
    return head | dict(
        pc_range=meta["pc_range"],
        voxel_size=meta["voxel_size"],
        num_classes=meta["num_classes"],
        empty_label=meta["empty_label"],
        embed_dims=meta["embed_dims"],
        num_query=meta["num_query"],
        num_frames=meta["num_frames"],
        num_cams=meta["num_views"],
        num_levels=sum(key.startswith("in/mlvl_feats.") for key in golden),
        score_thr=meta["score_thr"],
        decoder=decoder,
        loss_pts=dict(type="ChamferLoss", density_aware=kind == "v2_dcd"),
        loss_cls=dict(type="SigmoidFocalLoss", loss_weight=2.0, class_weights=meta["cls_weights"]),
    )


def load_case(golden: GoldenFile, dtype: torch.dtype) -> HeadCase:
    """Build a file's head, load its weights strictly, and load its inputs."""
    assert models.register  # imported for its side effect
    head: OccupancyHead = MODELS.build(head_config(golden))
    prefix = "state/"
    head.load_state_dict(
        {
            key.removeprefix(prefix): torch.from_numpy(np.array(golden[key]))
            for key in golden
            if key.startswith(prefix)
        },
        strict=True,
    )
    meta = json.loads(golden["meta/config"].tobytes())

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(golden[f"in/{name}"]).to(dtype)

    feats = [tensor(f"mlvl_feats.{level}") for level in range(head.num_levels)]
    samples = []
    for semantics, mask in zip(golden["in/voxel_semantics"], golden["in/mask_camera"], strict=True):
        sample = BaseDataElement()
        sample.voxel_semantics = torch.from_numpy(semantics)
        sample.mask_camera = torch.from_numpy(mask)
        samples.append(sample)
    geometry = CameraGeometry(tensor("ego2img"), tensor("ego2occ"), tuple(meta["img_hw"]))
    lidar = None
    if head.use_lidar:
        clouds = [tensor(f"points.{i}") for i in range(len(samples))]
        lidar = LidarInput(clouds, tensor("pts_feats"))
    feats = [level.requires_grad_() for level in feats]
    return HeadCase(head.to(dtype), feats, geometry, lidar, samples)


def check_head_float64(golden: GoldenFile) -> Iterator[Check]:
    """Compare all quantities of a file, with native operations and reference implementations."""
    with plain_operations():
        yield from _check_float64(golden, "plain ")
    yield from _check_float64(golden, "native ")


@dataclass(frozen=True)
class Tolerances:
    """Tolerances for 99 % of the elements of a head in reduced precision.

    Attributes:
        first: Points of the first layer, relative to the largest coordinate.
        later: Points of the later layers.
        voxels: Share of predicted voxels that may differ, over all elements.
        losses: Relative error of losses.
    """

    first: float
    later: float
    voxels: float
    losses: float


# Twice the values measured on the four files: see docs/operations.md.
TOLERANCES = {
    "float32": Tolerances(1e-4, 1e-2, 1e-2, 1e-2),
    "tf32": Tolerances(1.4e-3, 3.3e-2, 0.26, 0.05),
    "bfloat16": Tolerances(2e-2, 9e-2, 0.78, 0.1),
}


class RoundedFactors(TorchFunctionMode):
    """Emulation of TF32 on CPUs: rounds the factors of matrix products to 11 bits."""

    PRODUCTS = frozenset({F.linear, torch.addmm, torch.bmm, torch.matmul, Tensor.matmul})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in self.PRODUCTS:
            first = 1 if func is torch.addmm else 0  # the added term is not rounded
            factors = [_eleven_bits(x) for x in args[first : first + 2]]
            args = (*args[:first], *factors, *args[first + 2 :])
        return func(*args, **(kwargs or {}))


def _eleven_bits(x: Tensor) -> Tensor:
    """Round to nearest, ties away from zero, like a GPU."""
    bits = x.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def check_head_precision(golden: GoldenFile, precision: str) -> Iterator[Check]:
    """Compare outputs of a head in single precision with matrix products in `precision`.

    Rounding can move a sampling point across the border of an image and thus to another camera; the
    difference grows from layer to layer. Therefore only 99 % of the elements must agree.
    """
    rounding = RoundedFactors() if precision == "tf32" else nullcontext()
    with rounding:
        yield from _check_precision(golden, precision, TOLERANCES[precision])


def _check_precision(golden: GoldenFile, precision: str, allowed: Tolerances) -> Iterator[Check]:
    case = load_case(golden, torch.float32)
    case.head.precision = precision
    case.head.eval()
    with torch.no_grad():
        output = case.run()
        samples = case.head.predict(output, case.samples)
    for i, points in enumerate(output.points):
        key = f"eval/refine_pts.{i}"
        yield quantile(
            f"native {key}", points.numpy(), golden[key], allowed.later if i else allowed.first
        )
    for i, sample in enumerate(samples):
        expected = _voxel_set(golden[f"occ/{i}.loc"], golden[f"occ/{i}.label"])
        actual = _voxel_set(sample.pred_coords.numpy(), sample.pred_labels.numpy())
        differing = len(expected ^ actual) / len(expected)
        yield Check(f"native occ/{i} (part of voxels that differ)", differing, allowed.voxels)
    case.head.train()
    with torch.no_grad():
        losses = case.head.loss(case.run(), case.samples)
    for name, value in losses.items():
        yield relative(f"native loss/{name}", value.numpy(), golden[f"loss/{name}"], allowed.losses)


def _check_float64(golden: GoldenFile, path: str) -> Iterator[Check]:
    case = load_case(golden, torch.float64)
    for check in (*_check_outputs(case, golden), *_check_training(case, golden)):
        yield Check(path + check.name, check.error, check.tolerance)


def _check_outputs(case: HeadCase, golden: GoldenFile) -> Iterator[Check]:
    case.head.eval()
    with torch.no_grad():
        output = case.run()
        samples = case.head.predict(output, case.samples)
    for i, points in enumerate(output.points):
        key = f"eval/refine_pts.{i}"
        yield relative(key, points.numpy(), golden[key], 1e-5)
    yield from _check_class_scores(case, output, golden)
    for i, sample in enumerate(samples):
        coords, labels = _sorted(sample.pred_coords.numpy(), sample.pred_labels.numpy())
        yield absolute(f"occ/{i}.loc", coords, golden[f"occ/{i}.loc"], 0)
        yield absolute(f"occ/{i}.label", labels, golden[f"occ/{i}.label"], 0)


def _check_class_scores(case: HeadCase, output: HeadOutput, golden: GoldenFile) -> Iterator[Check]:
    """Compare voxel logits of the last layer, or point logits of all layers."""
    last = len(output.points) - 1
    voxels = output.voxels[last]
    if voxels is not None:
        coords, logits = _sorted(voxels.coords.numpy(), voxels.logits.numpy())
        key = f"eval/voxel_coors.{last}"
        expected_coords, expected_logits = _sorted(golden[key], golden[f"eval/cls_scores.{last}"])
        yield absolute(key, coords, expected_coords, 0)
        yield relative(f"eval/cls_scores.{last}", logits, expected_logits, 1e-5)
        return
    # Without dropout and batch norm, training mode differs only in that all layers return scores.
    case.head.train()
    with torch.no_grad():
        scores = case.run().point_feats
    case.head.eval()
    for i, point_logits in enumerate(scores):
        key = f"eval/cls_scores.{i}"
        assert point_logits is not None
        yield relative(key, point_logits.numpy(), golden[key], 1e-5)


def _check_training(case: HeadCase, golden: GoldenFile) -> Iterator[Check]:
    case.head.train()
    losses = case.head.loss(case.run(), case.samples)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    for name, value in (*losses.items(), ("total", total)):
        yield relative(f"loss/{name}", value.detach().numpy(), golden[f"loss/{name}"], 1e-5)
    gradients = {f"in.mlvl_feats.{i}": feats.grad for i, feats in enumerate(case.mlvl_feats)}
    for i, feats in enumerate(case.mlvl_feats):
        key = f"grad/mlvl_feats.{i}"
        yield relative(key, _grad_or_zero(feats), golden[key], 1e-4)
    gradients |= {name: p.grad for name, p in case.head.named_parameters()}
    for name, gradient in gradients.items():
        norm = 0.0 if gradient is None else float(gradient.norm())
        yield relative(f"gradnorm/{name}", norm, golden[f"gradnorm/{name}"], 1e-4)


def _grad_or_zero(tensor: Tensor) -> npt.NDArray[Any]:
    return np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()


def _sorted(
    coords: npt.NDArray[Any], values: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    order = np.lexsort(coords.T[::-1])
    return coords[order], values[order]


def _voxel_set(coords: npt.NDArray[Any], labels: npt.NDArray[Any]) -> set[tuple[int, ...]]:
    return {(*row, label) for row, label in zip(coords.tolist(), labels.tolist(), strict=True)}
