"""The detector: modes, gradients, streaming, augmentation of its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper

from models.bounded_cache import BoundedCache
from models.layers import GridMask
from tests.models.cases import DETECTOR, HW, N, T, make_batch, merge


def run(model: Any, batch: dict[str, Any], mode: str) -> Any:
    return model(**model.data_preprocessor(batch, model.training), mode=mode)


def test_modes(make_detector: Callable[..., Any]) -> None:
    model = make_detector()
    losses = run(model.train(), make_batch(0, 1), "loss")
    assert {"init_loss_pts", "loss_cls", "loss_pts", "d0.loss_cls", "d0.loss_pts"} == set(losses)
    assert all(value.isfinite() and value.ndim == 0 for value in losses.values())
    with torch.no_grad():
        model.eval()
        predictions = run(model, make_batch(0, 1), "predict")
        for i, sample in enumerate(predictions):
            assert sample.img_paths[0] == f"sample{i}_frame0_cam0.jpg"
        for sample in predictions:
            assert sample.pred_coords.shape == (*sample.pred_labels.shape, 3)
            assert sample.pred_scores.shape == sample.pred_labels.shape
        assert len(run(model, make_batch(0), "tensor").points) == 2
        with pytest.raises(ValueError, match="mode must be"):
            run(model, make_batch(0), "test")


def test_train_step_moves_what_should_move(make_detector: Callable[..., Any]) -> None:
    model = make_detector().train()
    torch.nn.init.normal_(model.pts_bbox_head.transformer["decoder"].decoder_layers[0].mixing.
                          parameter_generator.weight, std=0.01)  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0))
    model.train_step(make_batch(0), optimizer)
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    frozen = ("img_backbone.conv1.", "img_backbone.bn1.", "img_backbone.layer1.")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name in before:
        in_backbone = name.startswith("img_backbone.")
        grid = name.endswith(("pc_range", "scene_size", "voxel_size", "voxel_num"))
        stays = name.startswith(frozen) or (in_backbone and name.endswith(statistics)) or grid
        if stays:
            assert name in same, f"{name} moved"
        else:
            assert name not in same, f"{name} did not move"


def test_mixed_precision_reaches_the_image_network_alone(
    make_detector: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_detector().train()
    seen: dict[str, bool] = {}

    def note(part: str) -> Callable[..., None]:
        return lambda *_: seen.update({part: torch.is_autocast_enabled("cpu")})

    for part in ("img_backbone", "img_neck", "pts_bbox_head"):
        getattr(model, part).register_forward_pre_hook(note(part))
    model.pts_bbox_head.loss_cls.register_forward_pre_hook(note("loss"))
    data = model.data_preprocessor(make_batch(0), True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(**data, mode="loss")
    assert seen == dict(img_backbone=True, img_neck=True, pts_bbox_head=False, loss=False)
    assert all(value.dtype == torch.float32 for value in losses.values())


@pytest.mark.parametrize(("levels", "frames", "dims"), [(1, 1, 16), (2, 3, 32), (4, 1, 64)])
def test_other_sizes(
    levels: int, frames: int, dims: int, make_detector: Callable[..., Any]
) -> None:
    backbone = merge(
        DETECTOR["img_backbone"], num_stages=4, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1),
        out_indices=tuple(range(4 - levels, 4)), base_channels=16,
    )  # fmt: skip
    neck = merge(
        DETECTOR["img_neck"], num_outs=levels, out_channels=dims,
        in_channels=[16, 32, 64, 128][4 - levels :],
    )  # fmt: skip
    head = merge(DETECTOR["pts_bbox_head"], embed_dims=dims, num_levels=levels, num_frames=frames)
    head["decoder"]["num_refines"] = [1, 3, 5]  # a single point is a special case
    model = make_detector(img_backbone=backbone, img_neck=neck, pts_bbox_head=head).train()
    losses = run(model, make_batch(0, num_frames=frames), "loss")
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert len(losses) == 7 and total.isfinite()
    assert model.img_neck.lateral_convs[0].conv.weight.grad.any()


def test_current_frames_alone_carry_gradient(make_detector: Callable[..., Any]) -> None:
    images = torch.randn(1, T * N, 3, *HW)
    model = make_detector(stop_prev_grad=1).train()
    everything = make_detector().train()
    everything.load_state_dict(model.state_dict())
    stopped, full = model.extract_feat(images, []), everything.extract_feat(images, [])
    for a, b in zip(stopped, full, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    def norm_gradient(feats: list[torch.Tensor], net: Any, frames: slice) -> float:
        net.zero_grad()
        sum(level[:, frames].square().sum() for level in feats).backward()
        grad = net.img_neck.lateral_convs[0].conv.weight.grad
        return 0.0 if grad is None else float(grad.norm())

    current, previous = slice(0, N), slice(N, None)
    assert norm_gradient(model.extract_feat(images, []), model, previous) == 0.0
    now = norm_gradient(model.extract_feat(images, []), model, current)
    assert now == pytest.approx(norm_gradient(full, everything, current), rel=1e-3) and now > 0
    assert norm_gradient(everything.extract_feat(images, []), everything, previous) > 0
    assert model.img_backbone.training and model.img_neck.training


def test_previous_frames_run_in_eval_mode(make_detector: Callable[..., Any]) -> None:
    config = merge(DETECTOR["img_backbone"], frozen_stages=-1, norm_eval=False)
    model = make_detector(stop_prev_grad=1, img_backbone=config).train()
    images = torch.randn(1, T * N, 3, *HW)
    model.extract_feat(images, [])
    assert model.img_backbone.bn1.num_batches_tracked == 1  # only the current frame
    assert model.img_backbone.training and model.img_backbone.bn1.training


@torch.no_grad()
def test_streaming_equals_non_streaming(make_detector: Callable[..., Any]) -> None:
    plain, streaming = make_detector().eval(), make_detector(streaming=True).eval()
    streaming.load_state_dict(plain.state_dict())
    computed: list[int] = []
    streaming.img_backbone.register_forward_pre_hook(lambda _, x: computed.append(len(x[0])))
    drive = make_batch(0, num_frames=5)  # frame 4 is the oldest
    for current in (3, 2, 1):
        batch = make_batch(0)
        frames = slice(current * N, (current + T) * N)
        batch["inputs"]["img"][0] = drive["inputs"]["img"][0][frames]
        paths = drive["data_samples"][0].metainfo["img_paths"][frames]
        batch["data_samples"][0].set_metainfo(dict(img_paths=paths))
        expected = run(plain, batch, "tensor")
        actual = run(streaming, batch, "tensor")
        torch.testing.assert_close(actual.points, expected.points, rtol=1e-4, atol=1e-5)
        assert torch.equal(actual.voxels[-1].coords, expected.voxels[-1].coords)
    assert computed == [2 * N, N, N]  # one new frame per sample after the first


@torch.no_grad()
def test_streaming_computes_a_repeated_frame_once(make_detector: Callable[..., Any]) -> None:
    model = make_detector(streaming=True).eval()
    computed: list[int] = []
    model.img_backbone.register_forward_pre_hook(lambda _, x: computed.append(len(x[0])))
    batch = make_batch(0)
    paths = batch["data_samples"][0].metainfo["img_paths"][:N] * T
    batch["data_samples"][0].set_metainfo(dict(img_paths=paths))
    run(model, batch, "tensor")
    assert computed == [N]


@torch.no_grad()
def test_other_augmentation_or_weights_are_not_served_from_the_cache(
    make_detector: Callable[..., Any],
) -> None:
    model = make_detector(streaming=True).eval()
    computed: list[int] = []
    model.img_backbone.register_forward_pre_hook(lambda _, x: computed.append(len(x[0])))
    run(model, make_batch(0), "tensor")
    run(model, make_batch(0), "tensor")
    batch = make_batch(0)
    batch["data_samples"][0].set_metainfo(dict(ida_mat=2 * torch.eye(4).numpy()))
    run(model, batch, "tensor")
    model.eval()  # an evaluation starts: weights may have changed since the last one
    run(model, make_batch(0), "tensor")
    assert computed == [2 * N] * 3


def test_streaming_without_identity_is_refused(make_detector: Callable[..., Any]) -> None:
    model, batch = make_detector(streaming=True).eval(), make_batch(0)
    batch["data_samples"][0].set_metainfo(dict(ida_mat=None))
    with pytest.raises(ValueError, match="Streaming needs img_paths and ida_mat"):
        run(model, batch, "tensor")


def test_cache_counts_what_it_keeps() -> None:
    cache = BoundedCache[str](10, len)
    cache.put("a", "xxxx")
    cache.put("b", "xxxx")
    cache.put("a", "xxxxxx")  # replaced, and used last
    assert (cache.used, len(cache)) == (10, 2)
    assert cache.get("b", str) == "xxxx"
    cache.put("c", "x")
    assert ("a" in cache, "b" in cache, cache.used) == (False, True, 5)
    cache.put("b", "x" * 11)  # too large: the old value must not stay
    assert ("b" in cache, cache.used) == (False, 1)
    cache.clear()
    assert (cache.used, len(cache)) == (0, 0)


def test_missing_pretrained_weights_are_named(make_detector: Callable[..., Any]) -> None:
    init_cfg = dict(type="Pretrained", checkpoint="pretrain/nowhere.pth", prefix="backbone.")
    model = make_detector(img_backbone=merge(DETECTOR["img_backbone"], init_cfg=init_cfg))
    with pytest.raises(
        FileNotFoundError, match=r"pretrain/nowhere\.pth does not exist in .*: download it"
    ):
        model.init_weights()


def test_pretrained_weights_are_read_by_prefix(
    make_detector: Callable[..., Any], tmp_path: Any
) -> None:
    source, path = make_detector(), tmp_path / "mask_rcnn.pth"
    weights = {f"backbone.{k}": v + 1 for k, v in source.img_backbone.state_dict().items()}
    torch.save(dict(state_dict=weights | {"neck.other": torch.zeros(1)}), path)
    init_cfg = dict(type="Pretrained", checkpoint=str(path), prefix="backbone.")
    model = make_detector(img_backbone=merge(DETECTOR["img_backbone"], init_cfg=init_cfg))
    model.init_weights()
    for name, value in model.img_backbone.state_dict().items():
        assert torch.equal(value, weights[f"backbone.{name}"]), name


def test_unknown_keys_are_refused(make_detector: Callable[..., Any]) -> None:
    for changes in (
        dict(colour="red"),
        dict(pts_bbox_head=merge(DETECTOR["pts_bbox_head"], colour="red")),
        dict(data_preprocessor=dict(type="OPUSDataPreprocessor", colour="red")),
    ):
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            make_detector(**changes)
    with pytest.raises(ValueError, match="stop_prev_grad must be None or at least 1"):
        make_detector(stop_prev_grad=0)


def test_grid_mask_drops_a_quarter_in_squares_and_rests_in_eval_mode() -> None:
    mask, images = GridMask(ratio=0.5, prob=1.0), torch.ones(1, 4, 3, 64, 96)
    assert torch.equal(mask.eval()(images), images)
    mask.train()
    kept = []
    for _ in range(200):
        out = mask(images)[0]
        assert torch.equal(out, out[:1, :1].expand_as(out))  # one mask per sample
        dropped = out[0, 0] == 0
        # squares: what is dropped is a product of rows and columns
        assert torch.equal(dropped, dropped.any(1)[:, None] & dropped.any(0)[None, :])
        kept.append(float(out.mean()))
    assert 0.70 < sum(kept) / len(kept) < 0.82
    never = GridMask(prob=0.0).train()
    assert torch.equal(never(images), images)


def test_grid_mask_is_part_of_the_detector(make_detector: Callable[..., Any]) -> None:
    model = make_detector(grid_mask=dict(type="GridMask", prob=1.0))
    seen: list[torch.Tensor] = []
    model.img_backbone.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    images = torch.ones(1, T * N, 3, *HW)
    model.train().extract_feat(images, [])
    model.eval().extract_feat(images, [])
    assert not seen[0].all() and seen[1].all()
