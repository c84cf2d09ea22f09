"""Random draws in training depend on the sample, not on its batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from models.data_preprocessor import OPUSDataPreprocessor, PhotometricDistortion
from models.decoder.attention import ScaleAdaptiveSelfAttention
from models.decoder.layer import FeedForward
from models.layers import GridMask
from models.randomness import SampleDraws, dropout
from tests.models.cases import HEAD, HW, POINT_HEAD, N, T, make_batch, merge, with_lidar

DROPPING = {
    kind: merge(head, decoder=head["decoder"] | dict(dropout=0.3))
    for kind, head in (("v1", POINT_HEAD), ("v2", HEAD))
}
VARIANTS: dict[str, dict[str, Any]] = dict(
    v1=dict(pts_bbox_head=DROPPING["v1"]),
    v2=dict(pts_bbox_head=DROPPING["v2"]),
    v2_fusion=with_lidar(DROPPING["v2"]),
)
RANDOM = dict(
    grid_mask=dict(type="GridMask", prob=0.7),
    data_preprocessor=dict(
        type="OPUSDataPreprocessor", distortion=dict(type="PhotometricDistortion")
    ),
)


def seeded_batch(*seeds: int, lidar: bool = False, epoch: int = 0) -> dict[str, Any]:
    batch = make_batch(*seeds, lidar=lidar)
    for seed, sample in zip(seeds, batch["data_samples"], strict=True):
        sample.set_metainfo(dict(seed=1000 * epoch + seed))
    return batch


def points_of(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        output = model(**model.data_preprocessor(batch, True), mode="tensor")
    return list(output.points)


@pytest.mark.parametrize("kind", VARIANTS)
def test_training_output_of_a_sample_is_that_of_its_seed(
    kind: str, make_detector: Callable[..., Any]
) -> None:
    model = make_detector(**VARIANTS[kind], **RANDOM)
    for name, parameter in model.named_parameters():
        if name.endswith(("sampling_offset.weight", "parameter_generator.weight")):
            torch.nn.init.normal_(parameter, std=0.01)  # they start at zero: nothing would matter
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    lidar = model.has_lidar
    before = torch.get_rng_state()
    both = points_of(model, seeded_batch(3, 4, lidar=lidar))
    for row, seed in enumerate((3, 4)):
        alone = points_of(model, seeded_batch(seed, lidar=lidar))
        for a, b in zip(alone, both, strict=True):
            torch.testing.assert_close(a[0], b[row], rtol=1e-4, atol=1e-5)
    later = points_of(model, seeded_batch(3, 4, lidar=lidar, epoch=1))
    assert not torch.allclose(later[-1], both[-1], rtol=1e-3, atol=1e-3)
    assert torch.equal(torch.get_rng_state(), before)  # torch's generator is not asked


def test_distortion_of_a_sample_is_that_of_its_seed() -> None:
    images = torch.rand(6, 3, 8, 10) * 255
    distortion = PhotometricDistortion()
    both = distortion(torch.cat([images, images]), SampleDraws((5, 6)))
    assert torch.equal(both[:6], distortion(images, SampleDraws((5,))))
    assert torch.equal(both[6:], distortion(images, SampleDraws((6,))))
    assert not torch.equal(both[:6], both[6:])


def test_preprocessor_takes_the_seeds_of_the_samples() -> None:
    preprocessor = OPUSDataPreprocessor(distortion=dict(type="PhotometricDistortion"))
    both = preprocessor(seeded_batch(0, 1), training=True)["inputs"]["img"]
    swapped = preprocessor(seeded_batch(1, 0), training=True)["inputs"]["img"]
    assert both.shape == (2, T * N, 3, *HW)
    assert torch.equal(both, swapped.flip(0))


def test_grid_mask_of_a_sample_is_that_of_its_seed() -> None:
    mask, images = GridMask(prob=1.0).train(), torch.ones(2, 3, 1, 32, 48)
    both = mask(images, SampleDraws((1, 2)))
    assert torch.equal(both.flip(0), mask(images, SampleDraws((2, 1))))
    assert not torch.equal(both[0], both[1])


def test_parts_of_a_model_draw_independently() -> None:
    draws = SampleDraws((7, 8))
    seeds = [
        seed
        for names in (("ffn", 0), ("ffn", 1), ("attention",), (0, "ffn"), (1, "ffn"))
        for seed in _derived(draws, *names).seeds
    ]
    assert len(set(seeds)) == 10 and all(0 <= seed < 2**63 for seed in seeds)
    assert draws.part("ffn") == draws.part("ffn")


def _derived(draws: SampleDraws, *names: str | int) -> SampleDraws:
    for name in names:
        draws = draws.part(name)
    return draws


def test_dropout_drops_its_part_and_keeps_the_mean() -> None:
    x = torch.ones(2, 300, 200, requires_grad=True)
    out = dropout(x, 0.1, torch.tensor([1, 2**62 + 5]))
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.9)]
    dropped = (out == 0).float()
    for row in dropped:
        assert row.mean().item() == pytest.approx(0.1, abs=4 * (0.09 / row.numel()) ** 0.5)
        for axis in (0, 1):  # no row or column stands out
            assert 0.1 < 10 * row.mean(axis).std() < 0.35
    agree = (dropped[0] == dropped[1]).float().mean().item()
    assert agree == pytest.approx(0.82, abs=0.01)  # 0.9^2 + 0.1^2: the samples are independent
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, out.detach())


def test_without_draws_nothing_is_dropped() -> None:
    x = torch.randn(2, 5, 16)
    assert dropout(x, 0.5, None) is x
    ffn = FeedForward(16, 32, dropout=0.5).train()
    assert torch.equal(ffn(x), ffn(x))


def test_self_attention_drops_weights_and_not_its_output() -> None:
    attention = ScaleAdaptiveSelfAttention(32, num_heads=8, dropout=0.1).train()
    x, centres = torch.randn(2, 60, 32), torch.randn(2, 60, 3)
    seeds = torch.tensor([1, 2])
    update = attention(x, centres, seeds) - x
    plain = attention(x, centres) - x
    assert not torch.allclose(update, plain)
    assert (update != 0).all()  # a tenth would be zero
    assert torch.equal(attention(x, centres, seeds) - x, update)
    torch.testing.assert_close(attention(x[1:], centres[1:], seeds[1:]) - x[1:], update[1:])
