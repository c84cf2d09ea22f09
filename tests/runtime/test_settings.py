"""Values in a config or on the command line take effect or are rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scripts.runtime import config_printer
from scripts.runtime.config import load, load_config
from scripts.runtime.errors import ConfigError
from scripts.runtime.fit import fit_config
from scripts.runtime.launch import Launch

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "configs/toy/opusv2-nano_toy.py"
FUSION = ROOT / "configs/toy/opusv2-fusion-nano_toy.py"
PUBLISHED = ROOT / "configs/opusv2_nusc-occ3d/opusv2-t_r50_704x256_8f_nusc-occ3d_100e.py"
SPLITS = ("train", "val", "test")

# Settings with another value, and the places where it must arrive (split: each data set).
REACHED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "data_root": ("/mnt/x", ("{split}_dataloader.dataset",)),
    "version": ("v1.0-test", ("{split}_dataloader.dataset",)),
    "num_frames": (2, ("{split}_dataloader.dataset", "model.pts_bbox_head")),
    "pc_range": (
        [-20.0, -20.0, -1.0, 20.0, 20.0, 5.4],
        ("{split}_dataloader.dataset", "model.pts_bbox_head", "model.pts_bbox_head.decoder"),
    ),
    "voxel_size": ([0.8, 0.8, 0.8], ("{split}_dataloader.dataset", "model.pts_bbox_head")),
    "raw_hw": (
        (450, 800),
        ("{split}_dataloader.dataset.pipeline.0", "{split}_dataloader.dataset.pipeline.1"),
    ),
    "final_hw": ((128, 352), ("{split}_dataloader.dataset.pipeline.0",)),
    "resize_range": ((0.5, 0.6), ("{split}_dataloader.dataset.pipeline.0",)),
    "image_mode": ("exact", ("{split}_dataloader.dataset.pipeline.1",)),
    "image_cache_mb": (7, ("{split}_dataloader.dataset.pipeline.1",)),
    "label_cache_mb": (7, ("{split}_dataloader.dataset.pipeline.2",)),
    "bev_flip_prob": (0.25, ("{split}_dataloader.dataset.pipeline.3",)),
    "rare_classes": ([4], ("model.pts_bbox_head.loss_pts",)),
    "class_weights": ([2] * 17, ("model.pts_bbox_head.loss_cls",)),
    "vis_backends": ([dict(type="LocalVisBackend")], ("visualizer",)),
    "num_workers": (0, ("{split}_dataloader",)),
    "train_interval": ((1, 2), ("{split}_dataloader.dataset",)),
    "max_epochs": (3, ("train_cfg",)),
    "streaming": (True, ("model",)),
}


def at(cfg: Any, place: str) -> Any:
    for key in place.split("."):
        cfg = cfg[int(key)] if key.isdigit() else cfg[key]
    return cfg


def places(pattern: str) -> list[str]:
    return [pattern.format(split=split) for split in SPLITS] if "{" in pattern else [pattern]


def child(folder: Path, text: str, base: Path = TOY) -> Path:
    path = folder / "child.py"
    path.write_text(f"_base_ = {str(base)!r}\n{text}\n")
    return path


@pytest.mark.parametrize("way", ["file", "command line"])
@pytest.mark.parametrize("name", REACHED)
def test_a_setting_reaches_every_part(name: str, way: str, tmp_path: Path) -> None:
    value, patterns = REACHED[name]
    if way == "file":
        cfg = load_config(child(tmp_path, f"{name} = {value!r}"))
    else:
        cfg = load_config(TOY, {name: value})
    for place in (place for pattern in patterns for place in places(pattern)):
        assert at(cfg, place)[name] == value, place


@pytest.mark.parametrize("name", ["num_sweeps", "lidar_cache_mb", "load_dim"])
def test_lidar_settings(name: str) -> None:
    cfg = load_config(FUSION, {name: 3})
    for split in SPLITS:
        assert at(cfg, f"{split}_dataloader.dataset.pipeline.3")[name] == 3
    with pytest.raises(ConfigError, match=rf"--cfg-options: {name} is not read by any part"):
        load_config(TOY, {name: 2})


def test_the_label_of_unknown_voxels_is_that_of_files() -> None:
    metric = {"val_evaluator": [dict(type="OccupancyMetric")]}
    cfg = load_config(TOY, {"ignore_label": 0, **metric})
    for split in SPLITS:
        assert at(cfg, f"{split}_dataloader.dataset.pipeline.2").ignore_label == 0
    assert "ignore_label" not in cfg.val_evaluator[0]


def test_class_names_count_the_classes_everywhere() -> None:
    names = ["ground", "rest"]
    options = dict(class_names=names, class_weights=[1, 2], rare_classes=[1])
    cfg = load_config(TOY, options)
    assert (cfg.model.pts_bbox_head.num_classes, cfg.model.pts_bbox_head.empty_label) == (2, 2)
    assert cfg.model.img_aux_head.num_classes == 2
    assert cfg.val_evaluator[0].class_names == names
    assert cfg.test_dataloader.dataset.class_names == names


def test_cameras_are_counted() -> None:
    cfg = load_config(TOY, dict(cameras=["CAM_FRONT", "CAM_BACK"]))
    assert cfg.model.pts_bbox_head.num_cams == 2
    assert cfg.train_dataloader.dataset.cameras == ["CAM_FRONT", "CAM_BACK"]


def test_one_option_for_the_version() -> None:
    from mmengine.registry import DATASETS

    cfg = load_config(PUBLISHED, dict(version="v1.0-mini"))
    dataset = DATASETS.build({**cfg.val_dataloader.dataset, "lazy_init": True})
    assert Path(dataset.ann_file).name == "nuscenes_infos_val_mini_sweep.pkl"


@pytest.mark.parametrize(
    ("text", "place", "value"),
    [
        ("train_cfg = dict(max_epochs=24)", "train_cfg.max_epochs", 24),
        ("train_dataloader = dict(batch_size=2)", "train_dataloader.batch_size", 2),
        (
            "train_dataloader = dict(dataset=dict(data_root='/mnt/x'))",
            "train_dataloader.dataset.data_root",
            "/mnt/x",
        ),
        ("model = dict(img_backbone=dict(depth=34))", "model.img_backbone.depth", 34),
        ("img_backbone = dict(depth=34)", "model.img_backbone.depth", 34),
        ("model = dict(pts_bbox_head=dict(num_query=9))", "model.pts_bbox_head.num_query", 9),
        (
            "val_dataloader = dict(dataset=dict(data_root='/mnt/v'))",
            "test_dataloader.dataset.data_root",
            "/mnt/v",
        ),
        (
            "test_dataloader = dict(dataset=dict(data_root='/mnt/t'))",
            "test_dataloader.dataset.data_root",
            "/mnt/t",
        ),
        ("visualizer = dict(vis_backends=[])", "visualizer.vis_backends", []),
        ("val_evaluator = [dict(type='RayIoUMetric')]", "test_evaluator.0.type", "RayIoUMetric"),
    ],
)
def test_a_part_that_is_written_keeps_its_value(
    text: str, place: str, value: Any, tmp_path: Path
) -> None:
    cfg = load_config(child(tmp_path, text))
    fit_config(cfg, Launch())
    assert at(cfg, place) == value
    # What the part is not given still comes from the settings.
    assert cfg.model.img_backbone.base_channels == 32
    assert cfg.test_dataloader.dataset.num_frames == 1
    assert cfg.val_dataloader.dataset.data_root in ("data/toy_nuscenes", "/mnt/v")


@pytest.mark.parametrize(
    ("option", "place", "value"),
    [
        ("train_cfg.max_epochs", "train_cfg.max_epochs", 2),
        ("train_dataloader.batch_size", "train_dataloader.batch_size", 2),
        ("test_dataloader.dataset.data_root", "test_dataloader.dataset.data_root", "/mnt/x"),
        (
            "train_dataloader.dataset.pipeline.0.final_hw",
            "train_dataloader.dataset.pipeline.0.final_hw",
            (64, 64),
        ),
        ("test_evaluator.0.mask", "test_evaluator.0.mask", "lidar"),
        ("model.img_backbone.with_cp", "model.img_backbone.with_cp", True),
    ],
)
def test_options_reach_into_parts(option: str, place: str, value: Any) -> None:
    cfg = load_config(TOY, {option: value})
    assert at(cfg, place) == value
    assert cfg.val_dataloader.dataset.pipeline[0].final_hw == (96, 256)
    assert cfg.val_evaluator[0].mask == "camera"
    assert cfg.model.img_backbone.depth == 18


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"num_frmaes": 2},
            "num_frmaes is not read by any part of the config (did you mean 'num_fram",
        ),
        ({"image_mod": "fast"}, "did you mean 'image_mode'"),
        ({"score_thr": 0.5}, "has no effect, because model.pts_bbox_head.score_thr=0.2"),
        ({"empty_label": 3}, "empty_label is 3"),
        ({"num_classes": 3}, "num_classes is 3: they must agree; set class_names"),
        ({"model.pts_bbox_head.num_frames": 4}, "train_dataloader.dataset.num_frames is 1"),
        ({"val_dataloader.dataset.voxel_size": [1, 1, 1]}, "val_dataloader.dataset.voxel_size is"),
        ({"train_dataloader.dataset.class_names": ["a"]}, "class_names"),
        ({"model.pts_bbox_head.use_lidar": True}, "train_dataloader.dataset.use_lidar is False"),
        ({"model.pts_bbox_head.num_querry": 4}, "did you mean 'num_query'"),
        ({"optim_wrapper.optimizer.lrr": 4}, "does not take the key 'lrr'"),
        ({"optim_wrapper.optimizer.lr": "fast"}, "lr (AdamW) is 'fast', expected float"),
        ({"optim_wrapper.optimizer.betas": [0.9]}, "betas (AdamW) is [0.9], expected tuple"),
        ({"param_scheduler.1.begin": "a"}, "begin (CosineAnnealingLR) is 'a', expected int"),
        ({"default_hooks.checkpoint.interval": "x"}, "expected int"),
        ({"train_dataloader.dataset.pipeline.0.raw": 4}, "does not take the key 'raw'"),
        ({"train_cfg.max_epoch": 4}, "did you mean 'max_epochs'"),
        ({"train_dataloader.num_worker": 4}, "did you mean 'num_workers'"),
        ({"default_hooks.logger.intervall": 4}, "did you mean 'interval'"),
        ({"val_evaluator.0.maks": "x"}, "did you mean 'mask'"),
        ({"model.type": "OPOS"}, "did you mean 'OPUS'"),
        ({"randomness.sed": 3}, "did you mean 'seed'"),
        (
            {"train_dataloader.dataset.pipeline": [dict(type="LoadLidarSweeps")]},
            "train_dataloader.dataset.pipeline[0] is LoadLidarSweeps, but the data set has no",
        ),
        (
            {"batch_size": 4, "train_dataloader.batch_size": 2},
            "batch_size=4 has no effect, because train_dataloader.batch_size=2",
        ),
        ({"env_cfg.cudnn_benchmrk": True}, "did you mean 'cudnn_benchmark'"),
        ({"env_cfg.mp_cfg.start_method": "fork"}, "did you mean 'mp_start_method'"),
        ({"optim_wrapper.clip_grad.max_nrm": 3}, "did you mean 'max_norm'"),
        ({"optim_wrapper.paramwise_cfg.custm_keys": {}}, "did you mean 'custom_keys'"),
        (
            {"optim_wrapper.paramwise_cfg.custom_keys.img_backbone.lr_mul": 3},
            "did you mean 'lr_mult'",
        ),
        ({"log_level": "DEBG"}, "did you mean 'DEBUG'"),
        ({"launcher": "slurm"}, "leave it out"),
        ({"train_dataloader.num_workers": -1}, "train_dataloader.num_workers is -1"),
        ({"optim_wrapper.clip_grad.max_norm": -1}, "max_norm is -1: it must be above 0"),
        ({"revise_keys": [("(", "x")]}, "revise_keys holds"),
        ({"randomness": 3}, "randomness is 3, expected a dict"),
        ({"strategy": dict(type="DDPStrategy")}, "read by MMEngine's FlexibleRunner"),
        ({"train_dataloader.dataset.pipeline.9.x": 1}, "--cfg-options does not fit"),
    ],
)
def test_what_takes_no_effect_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(TOY, options)
    assert words in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        "compile", "sync_bn", "find_unused_parameters", "model_wrapper_cfg",
        "activation_checkpointing", "runner_type", "auto_scale_lr", "experiment_name",
        "efficient_conv_bn_eval", "work_dir",
    ],
)  # fmt: skip
def test_keys_of_the_runner_are_accepted(key: str) -> None:
    values: dict[str, Any] = {
        "model_wrapper_cfg": dict(find_unused_parameters=True),
        "auto_scale_lr": dict(enable=True, base_batch_size=8),
    }
    cfg = load_config(TOY, {key: values.get(key, "x")})
    assert cfg[key] == values.get(key, "x")


def test_a_variable_of_a_file_is_no_setting(tmp_path: Path) -> None:
    text = "rate = 1e-3\noptim_wrapper = dict(optimizer=dict(lr=rate))"
    assert load_config(child(tmp_path, text)).optim_wrapper.optimizer.lr == 1e-3
    # Copied while the file was read: a later value would reach nothing.
    with pytest.raises(ConfigError, match=r"--cfg-options: rate is not read by any part"):
        load_config(child(tmp_path, text), {"rate": 1e-4})
    grandchild = tmp_path / "grandchild.py"
    grandchild.write_text("_base_ = './child.py'\nrate = 1e-4\n")
    with pytest.raises(ConfigError, match=r"grandchild\.py: rate is not read by any part"):
        load_config(grandchild)
    grandchild.write_text(
        "_base_ = './child.py'\nhalf = {{_base_.rate}}\nrandomness = dict(seed=half)\n"
    )
    assert load_config(grandchild).randomness.seed == 1e-3


def test_a_setting_beside_an_older_copy_is_refused(tmp_path: Path) -> None:
    text = "max_epochs = 12\ntrain_cfg = dict(max_epochs=max_epochs)"
    assert load_config(child(tmp_path, text)).train_cfg.max_epochs == 12
    with pytest.raises(ConfigError, match=r"max_epochs=24 has no effect.*train_cfg.max_epochs=12"):
        load_config(child(tmp_path, text), {"max_epochs": 24})
    overridden = load_config(child(tmp_path, text), {"train_cfg.max_epochs": 24})
    assert overridden.train_cfg.max_epochs == 24


@pytest.mark.parametrize(
    "wrapper",
    [
        "dict(_delete_=True, type='RepeatDataset', times=2, dataset={leaf})",
        "dict(_delete_=True, type='ConcatDataset', datasets=[{leaf}, {leaf}])",
        "dict(_delete_=True, type='ClassBalancedDataset', oversample_thr=0.1, dataset={leaf})",
        "dict(_delete_=True, type='RepeatDataset', times=2, dataset=dict("
        "type='ConcatDataset', datasets=[{leaf}]))",
    ],
)
def test_settings_reach_through_wrappers(wrapper: str, tmp_path: Path) -> None:
    from scripts.runtime.settings import leaf_datasets

    leaf = "dict(type='NuScenesOcc3DDataset', split='train')"
    text = f"train_dataloader = dict(dataset={wrapper.format(leaf=leaf)})"
    cfg = load_config(child(tmp_path, text), {"num_frames": 3})
    leaves = leaf_datasets(cfg.train_dataloader.dataset, "train_dataloader.dataset")
    assert leaves
    for _, dataset in leaves:
        assert dataset["num_frames"] == 3 and dataset["pipeline"][0]["final_hw"] == (96, 256)
    bad = text.replace(leaf, leaf[:-1] + ", num_frames=2)", 1)
    with pytest.raises(ConfigError, match=r"train_dataloader.dataset.*num_frames is 2"):
        load_config(child(tmp_path, bad), {"num_frames": 3})


@pytest.mark.parametrize(
    "text",
    [
        "train_cfg = dict(type='IterBasedTrainLoop', max_iters=8, val_interval=4)",
        "train_cfg = dict(by_epoch=False, max_iters=8, val_interval=4)",
        "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=8, val_interval=4)",
    ],
)
def test_a_loop_by_iterations_counts_everything_in_iterations(text: str, tmp_path: Path) -> None:
    cfg = load_config(child(tmp_path, text))
    kind = "ResumableIterTrainLoop" if "by_epoch" in text else "IterBasedTrainLoop"
    assert cfg.train_cfg == dict(type=kind, max_iters=8, val_interval=4)
    assert cfg.default_hooks.checkpoint.interval == 4
    assert cfg.default_hooks.checkpoint.by_epoch is cfg.log_processor.by_epoch is False
    assert [scheduler.by_epoch for scheduler in cfg.param_scheduler] == [False, False]
    assert "convert_to_iter_based" not in cfg.param_scheduler[1]


def test_a_default_hook_can_be_taken_away() -> None:
    cfg = load_config(TOY, {"default_hooks.validation_sheet": None})
    assert "validation_sheet" not in cfg.default_hooks and "host_memory" in cfg.default_hooks


def test_type_and_by_epoch_contradict(tmp_path: Path) -> None:
    text = "train_cfg = dict(type='EpochBasedTrainLoop', by_epoch=False, max_epochs=2)"
    with pytest.raises(ConfigError, match="leave one out"):
        load_config(child(tmp_path, text))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*/*.py")), ids=lambda path: path.stem
)
def test_no_setting_of_a_shipped_config_is_without_a_reader(path: Path) -> None:
    if path.parent.name == "_base_":
        return
    loaded = load(path)
    lidar = {"num_sweeps", "lidar_cache_mb"}
    unread = {name for name, setting in loaded.settings.items() if not setting.is_effective}
    assert unread <= (set() if loaded.cfg.get("use_lidar") else lidar)


@pytest.mark.parametrize("path", [FUSION, PUBLISHED], ids=lambda path: path.stem)
def test_the_printed_config_is_the_config(path: Path, tmp_path: Path) -> None:
    text = config_printer.print_config(str(path), {"num_frames": 2})
    assert "# num_frames: from --cfg-options; read by train_dataloader.dataset" in text
    assert "# voxel_size: from " in text and "nuscenes_occ3d.py; read by" in text
    printed = tmp_path / "printed.py"
    printed.write_text(text)
    again = load_config(printed)
    cfg = load_config(path, {"num_frames": 2})
    for key in ("model", "train_dataloader", "val_dataloader", "test_dataloader", "train_cfg",
                "val_evaluator", "test_evaluator", "optim_wrapper", "param_scheduler",
                "default_hooks", "visualizer"):  # fmt: skip
        assert again[key] == cfg[key], key


@pytest.mark.parametrize(
    "option",
    ["num_frmaes=2", "batch_size=0", "max_epochs=nonsense", "class_weights=[1]", "voxel_size=0.4",
     "model.pts_bbox_head.embed_dims=65", "model.img_backbone.depth=7", "final_hw=7"],
)  # fmt: skip
def test_print_config_refuses_what_training_refuses(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert config_printer.main([str(TOY), "--cfg-options", option]) == 2
    captured = capsys.readouterr()
    assert not captured.out and len(captured.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    ["raise ValueError('bad')", "assert 1 == 2, 'bad'", "1 / 0", "import no_such_library",
     "x = undefined_name", "model = dict(", "model = 3", "custom_imports = 3"],
)  # fmt: skip
def test_a_config_may_raise_anything(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config|custom_imports|model") as error:
        load_config(child(tmp_path, text))
    assert "\n" not in str(error.value)


def test_the_table_of_the_documentation_is_complete() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in row.replace("`", "").replace(",", " ").split()}
    used = set()
    for path in (ROOT / "configs").glob("*/*.py"):
        if path.parent.name != "_base_":
            used |= set(load(path).settings)
    assert listed == used
