"""`position_code="where_used"` against a layer that is written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from models.decoder import FeatureMaps
from models.decoder.attention import ScaleAdaptiveSelfAttention
from models.errors import ModelConfigError
from tests.models.cases import HEAD, HW, make_feats, make_geometry


def test_values_do_not_see_the_code() -> None:
    attention = ScaleAdaptiveSelfAttention(16, num_heads=4).double().eval()
    nn.init.normal_(attention.gen_tau.weight)
    nn.init.normal_(attention.attention["attn"].in_proj_bias)
    reference = nn.MultiheadAttention(16, 4, batch_first=True).double().eval()
    reference.load_state_dict(attention.attention["attn"].state_dict())
    feats, code = torch.randn(2, 2, 7, 16, dtype=torch.float64)
    centres = torch.randn(2, 7, 3, dtype=torch.float64) * 5
    tau = attention.gen_tau(feats + code)
    mask = -tau.transpose(1, 2)[..., None] * torch.cdist(centres, centres)[:, None]
    placed = feats + code
    expected = feats + reference(placed, placed, feats, attn_mask=mask.flatten(0, 1))[0]
    torch.testing.assert_close(attention(feats, centres, code=code), expected)


@pytest.mark.parametrize("position_code", ["added", "where_used"])
def test_a_layer_written_out(position_code: str, make_head: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    decoder = HEAD["decoder"] | dict(position_code=position_code)
    layer = make_head(decoder=decoder).double().eval().transformer["decoder"].decoder_layers[1]
    for name, parameter in layer.named_parameters():
        if name.endswith(("parameter_generator.weight", "gen_tau.weight", "offset.weight")):
            nn.init.normal_(parameter, std=0.1)  # these start at zero, and would hide the code
    geometry = make_geometry(1, torch.float64)
    maps = FeatureMaps(make_feats(1, dtype=torch.float64), geometry.occ2img(), HW)
    feats = torch.randn(1, 10, 32, dtype=torch.float64)
    points = torch.rand(1, 10, 2, 3, dtype=torch.float64)
    points_m = points * 8 - 4
    output = layer(feats, points, points_m, maps, True)

    code = layer.position_encoder(points.flatten(2))
    placed = feats + code
    residual = placed if position_code == "added" else feats
    sampled, _ = layer.sampling(placed, points_m, maps)
    mixed = layer.norm1(layer.mixing(sampled, placed) - placed + residual)
    shown = None if position_code == "added" else code
    attended = layer.norm2(layer.self_attn(mixed, points_m.mean(2), code=shown))
    expected = layer.norm3(layer.ffn(attended))
    torch.testing.assert_close(output.query_feats, expected)


def test_the_two_ways_differ_and_have_the_same_parameters(make_head: Callable[..., Any]) -> None:
    outputs = []
    for position_code in ("added", "where_used"):
        torch.manual_seed(0)
        head = make_head(decoder=HEAD["decoder"] | dict(position_code=position_code)).eval()
        outputs.append((head(make_feats(1), make_geometry(1)).points[-1], head.state_dict()))
    (first, weights), (second, others) = outputs
    assert not torch.allclose(first, second)
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_an_unknown_way_is_refused(make_head: Callable[..., Any]) -> None:
    with pytest.raises(ModelConfigError, match="position_code is 'nowhere'"):
        make_head(decoder=HEAD["decoder"] | dict(position_code="nowhere"))
