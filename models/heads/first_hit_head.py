"""Auxiliary supervision of the image network: the first voxel that each pixel's ray hits.

Dimension letters: B batch, T frames, N cameras, L pyramid levels, C channels, h, w size of a
feature map, K classes, D depth bins, X, Y, Z voxels along the axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from models import ops
from models.losses import LossTerm, LossTerms, normalize_alone

from .interface import CameraGeometry
from .labels import UNKNOWN_LABEL
from .seen_surfaces import SeenSurfaces


@MODELS.register_module()
class FirstHitHead(BaseModule):
    """Classify, on every feature map of the current frame, the first occupied voxel of each pixel.

    Targets come from casting rays through the sample's labels: the class of the first voxel hit (or
    none) and the distance to it, in bins of equal ratio. The published models start from a
    detector's weights; an image network that starts from scratch learns semantics and depth faster
    with this head than from the Chamfer and class losses alone. It follows the depth supervision of
    BEVDepth (arXiv 2206.10092). In prediction it is used only by heads that need `seen_surfaces`.

    Args:
        in_channels: C.
        num_classes: K.
        empty_label: Label of free voxels.
        pc_range: `(x_min, y_min, z_min, x_max, y_max, z_max)` in metres of the occ frame.
        voxel_size: Edge lengths `(x, y, z)` of a voxel in metres.
        depth_bins: D.
        depth_range_m: Distances where the first bin starts and the last one ends.
        loss_weight: Factor of both losses.
        init_cfg: Initialisation configuration of MMEngine.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        empty_label: int,
        pc_range: Sequence[float],
        voxel_size: Sequence[float],
        depth_bins: int = 16,
        depth_range_m: tuple[float, float] = (1.5, 56.0),
        loss_weight: float = 1.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_classes = num_classes
        self.empty_label = empty_label
        self.grid_min = tuple(pc_range[:3])
        self.voxel_size = tuple(voxel_size)
        self.depth_bins = depth_bins
        self.depth_range_m = depth_range_m
        self.loss_weight = loss_weight
        self.predictor = nn.Conv2d(in_channels, num_classes + 1 + depth_bins, 1)

    def loss(
        self,
        mlvl_feats: Sequence[Tensor],
        geometry: CameraGeometry,
        data_samples: Sequence[BaseDataElement],
        num_cams: int,
    ) -> dict[str, Tensor]:
        """Return the losses of a batch on one process: the means of `loss_terms`, by name."""
        return normalize_alone(self.loss_terms(mlvl_feats, geometry, data_samples, num_cams))

    def loss_terms(
        self,
        mlvl_feats: Sequence[Tensor],
        geometry: CameraGeometry,
        data_samples: Sequence[BaseDataElement],
        num_cams: int,
    ) -> LossTerms:
        """Return the terms of `img.loss_cls` and `img.loss_depth`.

        They are cross-entropies over all pixels and over the pixels whose ray hits a voxel.

        Args:
            mlvl_feats: L maps `[B, T*N, C, h, w]`, the current frame's first.
            geometry: Cameras of the batch.
            data_samples: Samples with `voxel_semantics` `[X, Y, Z]`.
            num_cams: N.
        """
        occ2img = geometry.occ2img()[:, :num_cams]
        grids = [sample.voxel_semantics for sample in data_samples]
        logits, classes, bins = [], [], []
        for level in mlvl_feats:
            maps = self.predictor(level[:, :num_cams].flatten(0, 1).to(self.predictor.weight.dtype))
            logits.append(maps.permute(0, 2, 3, 1).flatten(0, 2))
            size = (level.shape[-2], level.shape[-1])
            for grid, cameras in zip(grids, occ2img, strict=True):
                hit_class, hit_bin = self.targets(grid, cameras, geometry.img_hw, size)
                classes.append(hit_class.flatten())
                bins.append(hit_bin.flatten())
        predicted, label, depth_bin = torch.cat(logits), torch.cat(classes), torch.cat(bins)
        of_class, of_depth = predicted.split([self.num_classes + 1, self.depth_bins], dim=1)
        hit = label < self.num_classes
        # A ray that ends in a voxel of unknown state has no target.
        class_total = F.cross_entropy(of_class, label, reduction="sum", ignore_index=UNKNOWN_LABEL)
        of_pixel = F.cross_entropy(of_depth, depth_bin, reduction="none")
        # Indexing by a mask would synchronise with the device.
        depth_total = torch.where(hit, of_pixel, 0.0).sum()
        pixels = (label != UNKNOWN_LABEL).sum().double()
        return {
            "img.loss_cls": [LossTerm(self.loss_weight * class_total, pixels)],
            "img.loss_depth": [LossTerm(self.loss_weight * depth_total, hit.sum())],
        }

    def seen_surfaces(
        self, feats: Tensor, occ2img: Tensor, img_hw: tuple[int, int]
    ) -> list[SeenSurfaces]:
        """Return the end points of the predicted rays of a frame.

        Args:
            feats: One level of the frame ``[B, N, C, h, w]``.
            occ2img: ``[B, N, 4, 4]``.
            img_hw: Height and width in pixels of the images that ``occ2img`` refers to.

        Returns:
            Per sample one point for each pixel. It exists if the pixel's most likely class is an
            occupied one. Its distance is the mean of the most likely depth bin and its two
            neighbours, by probability and in the logarithm.
        """
        points, shares = self._end_points(feats, occ2img, img_hw)
        hits = shares.argmax(-1) < self.num_classes
        pixels = feats.movedim(2, -1).flatten(1, 3)  # [B, N*h*w, C]
        return [
            SeenSurfaces(*of_sample) for of_sample in zip(points, pixels, shares, hits, strict=True)
        ]

    @torch.no_grad()
    def _end_points(
        self, feats: Tensor, occ2img: Tensor, img_hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return end points of all rays, and the probabilities of their classes.

        Returns:
            ``[B, N*h*w, 3]`` in the precision of ``occ2img``, and ``[B, N*h*w, K + 1]``.
        """
        num_cams, size = feats.shape[1], (feats.shape[-2], feats.shape[-1])
        maps = self.predictor(feats.flatten(0, 1).to(self.predictor.weight.dtype))
        maps = maps.unflatten(0, (-1, num_cams)).permute(0, 1, 3, 4, 2)  # [B, N, h, w, K+1+D]
        of_class, of_depth = maps.split([self.num_classes + 1, self.depth_bins], dim=-1)
        near, far = (math.log(limit) for limit in self.depth_range_m)
        share = (self._likely_bin(of_depth) + 0.5) / self.depth_bins
        distance = torch.exp(near + share * (far - near)).to(occ2img)
        pixels = pixel_centres(img_hw, size, feats.device).to(occ2img)  # [h*w, 3]
        inverse = _inverse(occ2img[..., :3, :3]).unsqueeze(2)  # [B, N, 1, 3, 3]
        # sums of products, because a matrix product may be in TF32
        rays = F.normalize((inverse * pixels[:, None]).sum(-1), dim=-1)  # [B, N, h*w, 3]
        origin = -(inverse * occ2img[..., None, None, :3, 3]).sum(-1)  # [B, N, 1, 3]
        points = origin + rays * distance.flatten(2)[..., None]
        return points.flatten(1, 2), of_class.softmax(-1).flatten(1, 3)

    def _likely_bin(self, logits: Tensor) -> Tensor:
        """Return the mean number of the most likely bin and its neighbours, ``[...]``."""
        bins = torch.arange(self.depth_bins, device=logits.device)
        near_best = (bins - logits.argmax(-1, keepdim=True)).abs() <= 1
        share = logits.masked_fill(~near_best, -math.inf).softmax(-1)
        return (share * bins).sum(-1)

    @torch.no_grad()
    def targets(
        self, grid: Tensor, occ2img: Tensor, img_hw: tuple[int, int], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Cast a ray through the centre of every cell of a feature map.

        Args:
            grid: `[X, Y, Z]` labels of a sample.
            occ2img: `[N, 4, 4]`.
            img_hw: Height and width in pixels of the images the projections refer to.
            size: h and w.

        Returns:
            int64 `[N, h, w]` classes (K if nothing is hit, `UNKNOWN_LABEL` in front of a
            voxel of unknown state) and int64 `[N, h, w]` depth bins.
        """
        device = occ2img.device
        pixels = pixel_centres(img_hw, size, device)
        labels = grid.to(torch.uint8).contiguous()
        pyramid = ops.OccupancyPyramid(labels[None], self.empty_label)
        near, far = (math.log(limit) for limit in self.depth_range_m)
        classes, bins = [], []
        cameras = occ2img.double()
        inverses = _inverse(cameras[:, :3, :3])
        for camera, inverse in zip(cameras, inverses, strict=True):
            rays = F.normalize(pixels @ inverse.T, dim=-1)
            origin = -(inverse @ camera[:3, 3])
            hits = ops.ray_cast(
                pyramid, origin[None], rays, self.grid_min, self.voxel_size, self.empty_label
            )
            x, y, z = hits.voxel[0, 0].long().clamp(min=0).unbind(-1)
            found = hits.hit[0, 0]
            classes.append(torch.where(found, labels[x, y, z].long(), self.num_classes))
            share = (hits.t_enter[0, 0].clamp(min=1e-3).log() - near) / (far - near)
            bins.append((share * self.depth_bins).long().clamp(0, self.depth_bins - 1))
        shape = (len(occ2img), *size)
        return torch.stack(classes).view(shape), torch.stack(bins).view(shape)


def pixel_centres(img_hw: tuple[int, int], size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the centres of the cells of a feature map, float64 ``[h*w, 3]``: u, v in pixels, 1.

    Args:
        img_hw: Height and width in pixels of the images.
        size: h and w.
        device: Device of the result.
    """
    v = (torch.arange(size[0], device=device) + 0.5) * (img_hw[0] / size[0])
    u = (torch.arange(size[1], device=device) + 0.5) * (img_hw[1] / size[1])
    v, u = torch.meshgrid(v, u, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)], dim=-1).flatten(0, 1).double()


def _inverse(matrices: Tensor) -> Tensor:
    """Return the inverses of matrices ``[..., 3, 3]``.

    In closed form: ``torch.linalg.inv`` would synchronise with the device, and ONNX has none.
    """
    a, b, c = matrices.unbind(-2)
    bc = torch.linalg.cross(b, c)
    columns = torch.stack([bc, torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=-1)
    return columns / (a * bc).sum(-1)[..., None, None]
