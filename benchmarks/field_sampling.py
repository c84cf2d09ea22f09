"""Sample multi-view features with the method of published code that has no CUDA kernel.

Needs only torch. Dimension letters as in `models/ops/multi_view_sampling.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def field_sampling(
    feats: Sequence[Tensor],
    points: Tensor,
    occ2img: Tensor,
    level_weights: Tensor,
    img_hw: tuple[int, int],
    num_cams: int,
    pairing: str = "published",
) -> Tensor:
    """Sample maps with the arguments of `multi_view_sampling`.

    Projects into every camera, selects one, and regroups every level to [B*T*G, c, N, h, w]. A
    volumetric `grid_sample`, with the camera as depth axis, reads each level. The results are
    weighted and summed.
    """
    B, Q, G, P, _ = points.shape
    C = feats[0].shape[2]
    T = occ2img.shape[1] // num_cams
    height, width = img_hw
    homogeneous = F.pad(points.reshape(B, 1, 1, Q * G * P, 3), (0, 1), value=1.0)
    matrices = occ2img.view(B, T, num_cams, 1, 4, 4)
    projected = (matrices @ homogeneous[..., None]).squeeze(-1)  # [B, T, N, S, 4]
    depth = projected[..., 2].clamp(min=1e-5)
    uv = projected[..., :2] / depth[..., None] / points.new_tensor([width, height])
    valid = (projected[..., 2] > 1e-5) & (uv > 0).all(-1) & (uv < 1).all(-1)
    camera = valid.to(torch.uint8).argmax(2, keepdim=True)
    uv = uv.gather(2, camera[..., None].expand(-1, -1, -1, -1, 2))[:, :, 0]
    depth_axis = (camera[:, :, 0].to(uv) / max(num_cams - 1, 1))[..., None]
    grid = (torch.cat([uv, depth_axis], -1) * 2 - 1).view(B, T, Q, G, P, 3)
    grid = grid.permute(0, 1, 3, 2, 4, 5).reshape(B * T * G, Q, P, 1, 3)
    weights = level_weights.permute(0, 2, 1, 3, 4)  # [B, G, Q, P, L]
    if pairing == "published":  # weights laid out (g, t), features (t, g)
        weights = weights[:, :, None].expand(B, G, T, Q, P, -1)
    else:
        weights = weights[:, None].expand(B, T, G, Q, P, -1)
    weights = weights.reshape(B * T * G, 1, Q, P, -1)
    out = None
    for level, feat in enumerate(feats):
        h, w = feat.shape[-2:]
        volume = feat.view(B, T, num_cams, G, C // G, h, w).permute(0, 1, 3, 4, 2, 5, 6)
        volume = volume.reshape(B * T * G, C // G, num_cams, h, w)
        read = F.grid_sample(volume, grid, align_corners=True)[..., 0]
        read = read * weights[..., level]
        out = read if out is None else out + read
    assert out is not None
    out = out.view(B, T, G, C // G, Q, P)
    return out.permute(0, 4, 2, 1, 5, 3).flatten(3, 4)
