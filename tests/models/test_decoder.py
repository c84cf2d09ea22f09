"""Parts of the decoder against direct formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from models.decoder.attention import ScaleAdaptiveSelfAttention
from models.decoder.mixing import AdaptiveMixing
from models.decoder.sampling import PointSampling
from tests.models.cases import PC_RANGE


def make_sampling(pattern: str) -> PointSampling:
    return PointSampling(16, num_cams=6, num_points=2, num_groups=4, num_levels=3, pattern=pattern)


def test_prototype_pattern() -> None:
    sampling = make_sampling("prototype")
    feats, points = torch.randn(1, 1, 16), torch.tensor([[[[0.0, 0, 0], [2.0, 4.0, 0.0]]]])
    offset = sampling.sampling_offset.bias.view(8, 3)  # the weight starts at zero
    # centre (1, 2, 0); unbiased deviation of two points = distance / sqrt(2)
    scale = torch.tensor([2.0, 4.0, 0.0]) / 2**0.5
    expected = torch.tensor([1.0, 2.0, 0.0]) + sampling.sampling_prototype.weight * scale + offset
    placed = sampling.sampling_points(feats, points)
    assert placed.shape == (1, 1, 4, 2, 3)
    torch.testing.assert_close(placed.view(8, 3), expected)


def test_prototype_pattern_of_a_single_point_has_unit_scale() -> None:
    sampling = make_sampling("prototype")
    placed = sampling.sampling_points(torch.randn(1, 1, 16), torch.ones(1, 1, 1, 3))
    offset = sampling.sampling_offset.bias.view(8, 3)
    torch.testing.assert_close(placed.view(8, 3), 1 + sampling.sampling_prototype.weight + offset)


def test_scaled_offset_pattern() -> None:
    sampling = make_sampling("scaled_offset")
    assert "sampling_prototype.weight" not in sampling.state_dict()
    offset = sampling.sampling_offset.bias.view(8, 3)
    points = torch.tensor([[[[0.0, 0, 0], [2.0, 4.0, 0.0]]]])
    placed = sampling.sampling_points(torch.randn(1, 1, 16), points)
    scale = torch.tensor([2.0, 4.0, 0.0]) / 2**0.5
    expected = torch.tensor([1.0, 2.0, 0.0]) + offset * scale
    torch.testing.assert_close(placed.view(8, 3), expected)
    single = sampling.sampling_points(torch.randn(1, 1, 16), torch.ones(1, 1, 1, 3))
    torch.testing.assert_close(single, torch.ones_like(single))


def test_sampling_start_values() -> None:
    sampling = make_sampling("prototype")
    assert not sampling.sampling_offset.weight.any()
    bias = sampling.sampling_offset.bias
    assert -0.5 <= bias.min() < bias.max() <= 0.5 and bias.std() > 0.1


def test_unknown_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="pattern must be one of"):
        make_sampling("grid")


def test_mixing_equals_its_formula() -> None:
    mixing = AdaptiveMixing(embed_dims=8, num_groups=2, in_points=3, out_points=5).double()
    nn.init.normal_(mixing.parameter_generator.weight)
    sampled = torch.randn(2, 4, 2, 3, 4, dtype=torch.float64)
    query = torch.randn(2, 4, 8, dtype=torch.float64)
    parameters = mixing.parameter_generator(query).view(2, 4, 2, 4 * 4 + 5 * 3)
    rows = torch.zeros(2, 4, 2, 5, 4, dtype=torch.float64)
    for b in range(2):
        for q in range(4):
            for g in range(2):
                m = parameters[b, q, g, :16].view(4, 4)
                s = parameters[b, q, g, 16:].view(5, 3)
                x = sampled[b, q, g] @ m
                x = ((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()).relu()
                x = s @ x
                x = ((x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()).relu()
                rows[b, q, g] = x
    expected = query + mixing.out_proj(rows.view(2, 4, -1))
    torch.testing.assert_close(mixing(sampled, query), expected)


def test_mixing_starts_independent_of_the_query() -> None:
    mixing = AdaptiveMixing(embed_dims=8, num_groups=2, in_points=3, out_points=5)
    assert not mixing.parameter_generator.weight.any()
    assert mixing.parameter_generator.bias.any()


def test_attention_equals_torch_with_a_distance_mask() -> None:
    attention = ScaleAdaptiveSelfAttention(16, num_heads=4).double().eval()
    nn.init.normal_(attention.gen_tau.weight)
    reference = nn.MultiheadAttention(16, 4, batch_first=True).double().eval()
    reference.load_state_dict(attention.attention["attn"].state_dict())  # same names
    feats = torch.randn(2, 7, 16, dtype=torch.float64)
    centres = torch.randn(2, 7, 3, dtype=torch.float64) * 5
    tau = attention.gen_tau(feats)  # [B, Q, H], of the attending query
    mask = torch.zeros(2, 4, 7, 7, dtype=torch.float64)
    for b in range(2):
        for h in range(4):
            for q in range(7):
                for k in range(7):
                    mask[b, h, q, k] = -tau[b, q, h] * (centres[b, q] - centres[b, k]).norm()
    expected = feats + reference(feats, feats, feats, attn_mask=mask.flatten(0, 1))[0]
    torch.testing.assert_close(attention(feats, centres), expected)


def test_attention_gives_the_centres_no_gradient_and_tau_starts_uniform() -> None:
    attention = ScaleAdaptiveSelfAttention(16, num_heads=8, dropout=0.0)
    assert not attention.gen_tau.weight.any()
    bias = attention.gen_tau.bias
    assert 0 <= bias.min() < bias.max() <= 2
    centres = torch.randn(1, 5, 3, requires_grad=True)
    attention(torch.randn(1, 5, 16), centres).sum().backward()
    assert centres.grad is None
    assert attention.gen_tau.weight.grad is not None and attention.gen_tau.weight.grad.any()


def test_decoder_refuses_dimensions_that_do_not_divide(make_head: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="must be a multiple of num_groups=4 and of num_heads=8"):
        make_head(embed_dims=36)


def test_grid_must_be_a_whole_number_of_voxels(make_head: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="not a positive whole number of voxels"):
        make_head(voxel_size=[0.7, 0.7, 0.7])
    with pytest.raises(ValueError, match="pc_range needs 6 numbers"):
        make_head(pc_range=PC_RANGE[:5])


def test_configuration_decides_the_grid_when_weights_are_loaded(
    make_head: Callable[..., Any],
) -> None:
    coarse, fine = make_head(), make_head(voxel_size=[0.4, 0.4, 0.4])
    fine.load_state_dict(coarse.state_dict())
    assert fine.voxel_num.tolist() == [40, 30, 8] and fine.grid_shape == (40, 30, 8)
    assert fine.densifiers[0].voxel_num.tolist() == [40, 30, 8]
    for name, value in coarse.named_parameters():
        assert torch.equal(value, dict(fine.named_parameters())[name])


def test_weights_of_another_range_are_refused(make_head: Callable[..., Any]) -> None:
    other = make_head(pc_range=[-8.0, -8.0, -1.0, 8.0, 8.0, 2.2])
    with pytest.raises(RuntimeError, match=r"pc_range: the checkpoint was trained for the range"):
        other.load_state_dict(make_head().state_dict())
