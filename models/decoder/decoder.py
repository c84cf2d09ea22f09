"""The stack of decoder layers.

Dimension letters: B batch, T frames, N cameras, L pyramid levels, Q queries, C embedding channels,
G groups, P sampling points of a group, R_i points of a query after layer i, F features of a point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from models import ops
from models.cuda_graphs import CapturedFunction
from models.errors import ModelConfigError
from models.randomness import SampleDraws

from .layer import DecoderLayer
from .sampling import FeatureMaps


@dataclass(eq=False)
class DecoderOutput:
    """Outputs of the decoder layers, one entry per layer.

    Attributes:
        points: ``[B, Q, R_i, 3]`` each, normalised, not clamped.
        point_feats: ``[B, Q, R_i, F]`` each; None for layers without point features.
        sampling_points: ``[B, Q, G, P, 3]`` each: where the layer sampled the images (and the LiDAR
            map), in metres of the occ frame, without gradient.
        query_feats: ``[B, Q, C]`` after the last layer.
    """

    points: list[Tensor]
    point_feats: list[Tensor | None]
    sampling_points: list[Tensor] = field(default_factory=list)
    query_feats: Tensor | None = None


@MODELS.register_module()
class OPUSDecoder(BaseModule):
    """Coarse-to-fine point prediction (OPUS, arXiv 2409.09350); no weight sharing between layers.

    The points of a query enter each layer without gradient. The head sets the arguments up to
    ``num_levels``, and ``use_lidar``.

    Args:
        pc_range: ``(x_min, y_min, z_min, x_max, y_max, z_max)`` in metres of the occ frame.
        embed_dims: C.
        point_channels: F.
        num_frames: T.
        num_cams: N.
        num_levels: L.
        num_refines: Points of a query after each layer; its length is the number of layers.
        num_points: Sampling points of a group.
        num_groups: Groups of channels; each group has its own sampling points.
        mixed_points: Features of a group after adaptive mixing; None for the number before it.
        num_heads: Heads of the self-attention.
        ffn_dims: Hidden channels of the feed-forward networks.
        dropout: Dropout in self-attention and feed-forward networks.
        refine_scale_m: Metres per unit of the output of the regression branches.
        prior_probability: Initial probability of sigmoid logits in the class branches; None if the
            branches give point features.
        sampling_pattern: ``'prototype'`` (V2) or ``'scaled_offset'`` (V1), see ``PointSampling``.
        level_pairing: ``'published'`` or ``'straight'``, see ``PointSampling``.
        position_code: ``'added'`` or ``'where_used'``, see ``DecoderLayer``.
        use_lidar: Whether a LiDAR map is sampled in addition to the images.
        cuda_graphs: Whether evaluation on a GPU captures the layers as a CUDA graph and replays it.
            The host then launches one graph per frame instead of hundreds of kernels.
        init_cfg: Initialisation configuration of MMEngine.

    Raises:
        ModelConfigError: If ``embed_dims`` is not a multiple of ``num_groups`` and ``num_heads``.
    """

    pc_range: Tensor

    def __init__(
        self,
        pc_range: Sequence[float],
        embed_dims: int,
        point_channels: int,
        num_frames: int,
        num_cams: int,
        num_levels: int,
        num_refines: Sequence[int],
        num_points: int = 4,
        num_groups: int = 4,
        mixed_points: int | None = 32,
        num_heads: int = 8,
        ffn_dims: int = 512,
        dropout: float = 0.1,
        refine_scale_m: float = 0.5,
        prior_probability: float | None = None,
        sampling_pattern: str = "prototype",
        level_pairing: str = "published",
        position_code: Literal["added", "where_used"] = "added",
        use_lidar: bool = False,
        cuda_graphs: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if embed_dims % num_groups or embed_dims % num_heads:
            raise ModelConfigError(
                f"embed_dims={embed_dims} must be a multiple of num_groups={num_groups} and of "
                f"num_heads={num_heads}."
            )
        self.embed_dims = embed_dims
        self.use_lidar = use_lidar
        self._img_hw: tuple[int, int] = (0, 0)  # of the captured graphs
        self._compile_options: dict[str, Any] | None = None
        self._compiled: Any = None  # of `decode`, made at the first call
        self._captured: CapturedFunction | None = None
        if cuda_graphs:
            self._captured = CapturedFunction(self._decode_flat)
        self.register_buffer(
            "pc_range", torch.tensor(pc_range, dtype=torch.float32), persistent=False
        )
        self.decoder_layers = nn.ModuleList(
            DecoderLayer(
                embed_dims=embed_dims,
                in_points=in_points,
                out_points=out_points,
                point_channels=point_channels,
                num_frames=num_frames,
                num_cams=num_cams,
                num_levels=num_levels,
                num_groups=num_groups,
                num_points=num_points,
                mixed_points=mixed_points,
                num_heads=num_heads,
                ffn_dims=ffn_dims,
                dropout=dropout,
                refine_scale_m=refine_scale_m,
                prior_probability=prior_probability,
                sampling_pattern=sampling_pattern,
                level_pairing=level_pairing,
                use_lidar=use_lidar,
                position_code=position_code,
            )
            for in_points, out_points in zip([1, *num_refines[:-1]], num_refines, strict=True)
        )

    def forward(
        self,
        init_points: Tensor,
        mlvl_feats: Sequence[Tensor],
        occ2img: Tensor,
        img_hw: tuple[int, int],
        bev_feats: Tensor | None = None,
        draws: SampleDraws | None = None,
        init_feats: Tensor | None = None,
    ) -> DecoderOutput:
        """Run all layers. In eval mode, only the last one computes point features.

        Args:
            init_points: ``[B, Q, 1, 3]``, normalised.
            mlvl_feats: L maps ``[B, T*N, C, h, w]``.
            occ2img: ``[B, T*N, 4, 4]``.
            img_hw: Height and width in pixels of the images the projections refer to.
            bev_feats: LiDAR map ``[B, C, h, w]`` over the xy plane of ``pc_range``, rows along y,
                columns along x; None without LiDAR.
            draws: Random numbers of the dropout in training; None uses torch's generator.
            init_feats: ``[B, Q, C]``, initial features of the queries; None for zeros, as
                published.

        Raises:
            ModelConfigError: If a LiDAR map is missing or unexpected.
        """
        if (bev_feats is not None) != self.use_lidar:
            raise ModelConfigError(
                f"The decoder has use_lidar={self.use_lidar} and got "
                f"{'no' if bev_feats is None else 'a'} LiDAR map: set use_lidar of the head to "
                "whether the detector has a LiDAR branch."
            )
        maps = FeatureMaps(tuple(mlvl_feats), occ2img, img_hw, bev_feats, self.pc_range)
        seeds = None
        if self.training:
            draws = draws or SampleDraws.fresh(len(init_points))
            seeds = self.dropout_seeds(draws, init_points.device)
        if self._captured is None or self.training:
            return self._decode(init_points, maps, seeds, init_feats)
        if self._img_hw != img_hw:
            self._captured.forget()
            self._img_hw = img_hw
        results = self._captured(init_points, occ2img, bev_feats, init_feats, *mlvl_feats)
        number = len(self.decoder_layers)
        points, sampling = results[:number], results[number:-2]
        return DecoderOutput(
            [x for x in points if x is not None],
            [*[None] * (number - 1), results[-2]],
            [x for x in sampling if x is not None],
            results[-1],
        )

    def _decode_flat(
        self,
        init_points: Tensor,
        occ2img: Tensor,
        bev_feats: Tensor | None,
        init_feats: Tensor | None,
        *mlvl_feats: Tensor,
    ) -> list[Tensor | None]:
        """Run all layers in eval mode and return the fields of ``DecoderOutput`` in one list."""
        maps = FeatureMaps(mlvl_feats, occ2img, self._img_hw, bev_feats, self.pc_range)
        output = self._decode(init_points, maps, None, init_feats)
        feats = output.point_feats[-1]
        return [*output.points, *output.sampling_points, feats, output.query_feats]

    def compile_layers(self, **options: Any) -> None:
        """Compile the layers at their next call.

        Args:
            **options: Arguments of `torch.compile`.
        """
        self._compile_options, self._compiled = options, None

    def _decode(self, *args: Any) -> DecoderOutput:
        """Run `decode`, compiled after `compile_layers`."""
        if self._compile_options is None:
            return self.decode(*args)
        if self._compiled is None:
            self._compiled = torch.compile(self.decode, **self._compile_options)
        output: DecoderOutput = self._compiled(*args)
        return output

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the compiled function: copies compile their own."""
        return super().__getstate__() | {"_compiled": None}

    def _apply(self, *args: Any, **kwargs: Any) -> OPUSDecoder:
        """Move the parameters and drop the graphs, which refer to the old addresses."""
        if self._captured is not None:
            self._captured.forget()
        super()._apply(*args, **kwargs)
        return self

    def decode(
        self,
        init_points: Tensor,
        maps: FeatureMaps,
        seeds: Tensor | None = None,
        init_feats: Tensor | None = None,
    ) -> DecoderOutput:
        """Run all layers without reading values on the host.

        This compiles to one graph and can be captured as a CUDA graph.

        Args:
            init_points: ``[B, Q, 1, 3]``, normalised.
            maps: Feature maps to sample.
            seeds: int64 ``[layers, 3, B]``, see ``dropout_seeds``; None for no dropout.
            init_feats: ``[B, Q, C]``, see ``forward``.
        """
        low, size = self.pc_range[:3], self.pc_range[3:] - self.pc_range[:3]
        query_feats = init_feats
        if query_feats is None:
            query_feats = init_points.new_zeros(*init_points.shape[:2], self.embed_dims)
        points = init_points
        if not isinstance(maps.mlvl_feats, ops.SharedMaps):
            maps = replace(maps, mlvl_feats=ops.SharedMaps(maps.mlvl_feats))
        order = None
        if init_points.device.type != "cpu":  # once, because it needs a dozen launches
            order = ops.attention_order((init_points.detach() * size + low).squeeze(2))
        output = DecoderOutput([], [])
        for i, layer in enumerate(self.decoder_layers):
            points = points.detach()
            wanted = self.training or i == len(self.decoder_layers) - 1
            points_m = points * size + low
            own_seeds = None if seeds is None else seeds[i]
            refined = layer(query_feats, points, points_m, maps, wanted, own_seeds, order)
            query_feats = refined.query_feats
            points = (refined.points_m - low) / size
            output.points.append(points)
            output.point_feats.append(refined.point_feats)
            output.sampling_points.append(refined.sampling_points)
        output.query_feats = query_feats
        return output

    def dropout_seeds(self, draws: SampleDraws, device: torch.device) -> Tensor:
        """Return the seeds of all layers, int64 ``[layers, 3, B]``, with one copy to the device.

        A layer has a seed for its self-attention and two for its feed-forward network.
        """
        seeds = []
        for i in range(len(self.decoder_layers)):
            own = draws.part(i)
            ffn = own.part("ffn")
            parts = (own.part("attention"), ffn.part(0), ffn.part(1))
            seeds.append([part.seeds for part in parts])
        return torch.tensor(seeds, dtype=torch.int64).to(device, non_blocking=True)
