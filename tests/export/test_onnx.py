"""ONNX files predict the same as the project, and describe their inputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image

from loaders.transforms.geometry import image_aug_matrix
from loaders.transforms.images import DrawImageAug, LoadMultiViewImages
from models.errors import MissingPackageError
from scripts.export import onnx_command
from scripts.export.checking import check
from scripts.export.comparison import Agreement, OnnxRunner, compare
from scripts.export.functions import functions_of
from scripts.export.graphs import Layout, Voxels
from scripts.export.interface import lidar_facts
from scripts.export.onnx_model import save_onnx, to_onnx
from scripts.export.source import Source, _check_head, frame_of, predict, random_item
from scripts.runtime.config import load_config
from scripts.runtime.errors import ConfigError
from tests.export.conftest import ONE_LAYER, build_source
from tests.models.cases import HW, N, T, camera_matrices

ROOT = Path(__file__).parents[2]
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
from examples.onnx_stream import Stream, prepare, voxelise  # noqa: E402

# Half a minute each: an export traces, translates and simplifies some thousand operators.
long = pytest.mark.skipif(
    not os.environ.get("OPUS_LONG_TESTS"), reason="OPUS_LONG_TESTS is not set"
)


HEAD_OPTIONS = ("num_query=40", "score_thr=0.05", "decoder.num_refines=[4]")


def export(source: Source, folder: Path, **options: Any) -> list[Path]:
    return [
        save_onnx(to_onnx(source, function), function.path(folder / "model.onnx"))
        for function in functions_of(source, Layout.STACKED, **options)
    ]


def agreements(source: Source, runner: OnnxRunner, **item: int) -> list[Agreement]:
    items = [random_item(source, seed, **item) for seed in (1, 2)]
    return [compare(predict(source, item), runner(frame_of(source, item))) for item in items]


class Exported:
    """Hold the files that one run of the command wrote for a config."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = build_source("v2_plus", **ONE_LAYER)
        from nano_parts import write_config

        self.config = write_config(folder, ROOT, "v2_plus")
        self.weights = folder / "weights.pth"
        torch.save(dict(state_dict=self.source.detector.state_dict()), self.weights)
        self.arguments = [
            "--config", str(self.config), "--weights", str(self.weights),
            "--image-size", *map(str, HW), "--cfg-options",
            *(f"model.pts_bbox_head.{key}" for key in HEAD_OPTIONS),
        ]  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    case = Exported(tmp_path_factory.mktemp("onnx"))
    out = str(case.folder / "model.onnx")
    frame = str(case.folder / "frame.npz")
    code = onnx_command.main(
        [*case.arguments, "--out", out, "--split", "--check", "2", "--frame", frame]
    )
    assert code == 0
    return case


def test_split_files_predict_what_the_project_predicts(exported: Exported) -> None:
    files = [exported.folder / f"model_{part}.onnx" for part in ("image", "decoder")]
    for agreement in agreements(exported.source, OnnxRunner(files, N)):
        assert agreement.expected > 100
        assert agreement.share == 1 and agreement.score_error < 1e-4, agreement


def test_files_hold_standard_operators_and_say_what_they_are(exported: Exported) -> None:
    for part, inputs in (
        ("image", ["images"]),
        ("decoder", ["feats0", "feats1", "feats2", "occ2img"]),
    ):
        path = exported.folder / f"model_{part}.onnx"
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        assert not model.functions
        assert [value.name for value in model.graph.input] == inputs
        assert all(value.doc_string for value in (*model.graph.input, *model.graph.output))
        facts = {entry.key: entry.value for entry in model.metadata_props}
        assert json.loads(facts["grid_shape"]) == [20, 15, 4]
        assert json.loads(facts["num_frames"]) == T and json.loads(facts["image_hw"]) == list(HW)
        assert facts["checkpoint_sha256"] != "null"
        assert str(ROOT).encode() not in path.read_bytes()
    names = [value.name for value in model.graph.output]
    assert names == ["coords", "labels", "scores"]
    assert {dim.dim_param for dim in model.graph.output[0].type.tensor_type.shape.dim} == {
        "voxels",
        "",
    }


def test_example_runs_without_torch(exported: Exported) -> None:
    folder = exported.folder
    example = str(ROOT / "examples/onnx_stream.py")
    script = (
        "import runpy, sys; sys.modules.update(torch=None, mmengine=None); "
        f"runpy.run_path({example!r}, run_name='__main__')"
    )
    names = ("model_image.onnx", "model_decoder.onnx", "frame.npz", "voxels.npz")
    command = [sys.executable, "-c", script, *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    frame = dict(np.load(folder / "frame.npz"))
    assert frame["images"].shape == (T, N, 3, *HW)
    found = np.load(folder / "voxels.npz")
    assert len(found["coords"]) == len(found["scores"]) > 0
    assert "voxels of class" in done.stdout


def test_example_streams_as_the_project(exported: Exported) -> None:
    """Three pushes: maps of past frames are kept, and their cameras seen from the current pose."""
    stream = Stream(*(str(exported.folder / f"model_{part}.onnx") for part in ("image", "decoder")))
    rng = np.random.default_rng(0)
    mounted = camera_matrices(1).double().numpy()
    drive = []
    for number in range(3):
        vehicle = np.eye(4)
        vehicle[:2, :2] = [[np.cos(0.1 * number), -np.sin(0.1 * number)],
                           [np.sin(0.1 * number), np.cos(0.1 * number)]]  # fmt: skip
        vehicle[:3, 3] = 100.0 + 0.4 * number, 50.0, 0.0
        drive.append((rng.integers(0, 256, (N, 3, *HW), dtype=np.uint8), vehicle))
    for number, (pixels, vehicle) in enumerate(drive):
        found = Voxels(*map(torch.from_numpy, stream.push(pixels, mounted, vehicle)))
        chosen = [drive[max(0, number - t)] for t in range(T)]  # the oldest repeats
        item = random_item(exported.source)
        item["inputs"]["img"] = torch.from_numpy(np.concatenate([images for images, _ in chosen]))
        names = [f"push {max(0, number - t)} camera {n}" for t in range(T) for n in range(N)]
        item["data_samples"].set_metainfo(dict(img_paths=names))
        then = [mounted @ np.linalg.solve(pose, vehicle) for _, pose in chosen]
        item["data_samples"].ego2img = torch.from_numpy(np.concatenate(then)).float()
        agreement = compare(predict(exported.source, item), found)
        assert agreement.expected > 100
        assert agreement.share == 1 and agreement.score_error < 1e-4, agreement


def test_the_code_of_the_guide_runs(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exported.folder)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    code = (ROOT / "docs/deployment.md").read_text().split("```python\n", 1)[1].split("```")[0]
    pixels = np.random.default_rng(0).integers(0, 256, (N, 90, 160, 3), dtype=np.uint8)
    cameras = camera_matrices(1).double().numpy()
    frame = [Image.fromarray(image) for image in pixels], [np.eye(4)] * N, cameras, np.eye(4)
    names: dict[str, Any] = {"frames": [frame]}
    exec(code, names)
    assert len(names["coords"]) == len(names["labels"]) == len(names["scores"]) > 0


def test_example_prepares_images_as_the_project() -> None:
    """Pixels of the exact mode, and the matrix from raw to prepared pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    found, matrix = prepare(Image.fromarray(pixels), (32, 64))
    draw = DrawImageAug(raw_hw=(90, 160), final_hw=(32, 64))
    load = LoadMultiViewImages(raw_hw=(90, 160), image_mode="exact")
    expected = load.finish(np.ascontiguousarray(pixels[..., ::-1]), draw.fixed_for(), "of a test")
    np.testing.assert_array_equal(found.transpose(1, 2, 0), expected)
    np.testing.assert_allclose(matrix, image_aug_matrix(draw.fixed_for()), rtol=1e-6, atol=1e-5)


def test_example_voxelises_as_the_model() -> None:
    source = build_source("v1_fusion")
    layer = source.detector.pts_voxel_layer
    layer.max_points, layer.max_voxels = 2, (5, 300)
    points = random_item(source, 3, num_points=2000)["inputs"]["points"]
    points[::3, :3] = points[:1, :3] + 0.5 * torch.rand_like(points[::3, :3])  # crowded voxels
    points[5] = 1e4  # outside
    expected = layer([points])
    found = voxelise(points.numpy(), source.facts() | lidar_facts(source))
    assert len(expected.coords) == 300
    np.testing.assert_array_equal(found["lidar_coords"], expected.coords[:, 1:])
    np.testing.assert_allclose(found["lidar_features"], expected.features, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["lidar_sweep"], points[points[:, 4] == 0, :3])


def test_models_with_a_memory_are_refused() -> None:
    detector = build_source("v2").detector
    _check_head(detector)
    detector.pts_bbox_head.memory = torch.nn.Identity()
    with pytest.raises(ConfigError, match="memory, which exported files do not compute"):
        _check_head(detector)


@long
@pytest.mark.slow
def test_fusion_takes_any_number_of_lidar_voxels(tmp_path: Path) -> None:
    source = build_source("v1_fusion")
    runner = OnnxRunner(export(source, tmp_path), N)
    for number in (400, 3000):
        for agreement in agreements(source, runner, num_points=number):
            assert agreement.expected > 20
            assert agreement.share == 1 and agreement.score_error < 1e-4, agreement


@long
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["v1", "v2", "dcd", "v2_fusion"])
def test_other_kinds(kind: str, tmp_path: Path) -> None:
    source = build_source(kind)
    runner = OnnxRunner(export(source, tmp_path), N)
    for agreement in agreements(source, runner):
        assert agreement.expected > 20 and agreement.share == 1, agreement


@long
@pytest.mark.slow
def test_other_grids_and_half_precision(tmp_path: Path) -> None:
    source = build_source("v2", voxel_size=[0.4, 0.4, 0.4])
    for half, least in ((False, 1.0), (True, 0.9)):
        runner = OnnxRunner(export(source, tmp_path, split=True, half=half), N)
        for agreement in agreements(source, runner):
            assert agreement.expected > 20 and agreement.share >= least, agreement


@long
@pytest.mark.slow
def test_published_size(tmp_path: Path) -> None:
    """OPUS-V2-T: ResNet-50, 8 frames of 704 x 256, 600 queries, five layers; every voxel counts."""
    name = "opusv2-t_r50_704x256_8f_nusc-occ3d_50e.py"
    model = load_config(ROOT / "configs/opusv2_nusc-occ3d" / name).model
    torch.manual_seed(0)
    detector = MODELS.build(model).eval()
    for key, parameter in detector.named_parameters():
        if key.endswith(("parameter_generator.weight", "sampling_offset.weight")):
            torch.nn.init.normal_(parameter, std=0.02)  # they start at zero
    detector.pts_bbox_head.score_thr = 0.0
    source = Source(detector, (256, 704), config=name)
    runner = OnnxRunner(export(source, tmp_path, split=True), source.head.num_cams)
    item = random_item(source)
    agreement = compare(predict(source, item), runner(frame_of(source, item)))
    assert agreement.expected > 10_000 and agreement.share >= 0.999, agreement


def test_agreement_is_counted() -> None:
    def voxels(rows: list[list[int]], labels: list[int], scores: list[float]) -> Voxels:
        return Voxels(torch.tensor(rows).view(-1, 3), torch.tensor(labels), torch.tensor(scores))

    expected = voxels([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [1, 2, 3], [0.5, 0.6, 0.7])
    found = voxels([[2, 0, 0], [1, 0, 0], [3, 0, 0]], [3, 1, 3], [0.7, 0.5, 0.9])
    agreement = compare(expected, found)
    assert (agreement.common, agreement.relabelled) == (2, 1)
    assert agreement.share == 1 / 4 and agreement.score_error == pytest.approx(0.1)
    assert agreement.label_error == pytest.approx(0.1)
    again = compare(expected, found, threshold=0.45)
    assert again.lone_margin == pytest.approx(0.45)  # of 0.5, which is missing, and 0.9
    assert "1 missing and 1 added, their scores within 4.5e-01 of the threshold" in str(again)
    assert "1 of another label, their scores within 1.0e-01" in str(again)
    nothing = voxels([], [], [])
    assert compare(nothing, nothing).share == 1 and compare(expected, nothing).share == 0


def test_a_comparison_without_voxels_fails(capsys: pytest.CaptureFixture[str]) -> None:
    source = build_source("v2", score_thr=1.0)
    empty = Voxels(torch.empty(0, 3, dtype=torch.int64), torch.empty(0).long(), torch.empty(0))
    assert not check(source, lambda frame: empty, 1, 0.999)
    assert "no voxel was predicted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "model.pt"], "--out model.pt does not end in .onnx"),
        (["--out", "model.onnx", "--opset", "17"], "'17' is not a whole number from 18"),
        (["--out", "model.onnx", "--frame", "frame.npy"], "--frame frame.npy does not end in .npz"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(ROOT / "configs/toy/opusv2-nano_toy.py")
    code = onnx_command.main(["--config", config, "--weights", "none.pth", *arguments])
    assert code == 2
    printed = capsys.readouterr().err
    assert sentence in printed and len(printed.splitlines()) == 1


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    source = build_source("v2")
    (function,) = functions_of(source, Layout.STACKED)
    with pytest.raises(MissingPackageError, match=r"requirements/onnx\.txt"):
        to_onnx(source, function)
