"""Compiled programs predict the same as the project, from Python and from C++."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import ops
from models.ops.sparse_conv import KernelMap
from scripts.export import program_command
from scripts.export.comparison import compare
from scripts.export.functions import traced
from scripts.export.graphs import Voxels
from scripts.export.interface import geometry_tensors
from scripts.export.program import (
    ProgramRunner,
    program_functions,
    program_operations,
    traced_kernel_map,
    write_program,
)
from scripts.export.source import frame_of, predict, random_item, write_frame
from tests.export.conftest import ONE_LAYER, build_source
from tests.models.cases import N

ROOT = Path(__file__).parents[2]
# Minutes: two compilations by AOTInductor, one of the C++ program.
long = pytest.mark.skipif(
    not os.environ.get("OPUS_LONG_TESTS"), reason="OPUS_LONG_TESTS is not set"
)


@pytest.mark.parametrize("subm", [False, True])
def test_kernel_maps_of_sorted_voxels_need_no_second_look(subm: bool) -> None:
    coords = torch.nonzero(torch.rand(1, 8, 7, 6) < 0.2)
    settings = (coords, (8, 7, 6), (3, 3, 3), (1, 1, 1), (1, 1, 1), subm)
    expected: KernelMap = ops.build_kernel_map(*settings)
    found = traced_kernel_map(*settings)
    assert (found.out_shape, found.num_in) == (expected.out_shape, expected.num_in)
    for name in ("out_coords", "pairs", "pairs_by_in", "starts"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("kind", ["v2", "v2_plus"])
@torch.no_grad()
def test_traced_functions_hold_native_operations_and_predict_the_same(kind: str) -> None:
    source = build_source(kind, **ONE_LAYER)
    image, decoder = program_functions(source)
    with program_operations():
        trace = traced(decoder)
    called = {str(node.target) for node in trace.graph.nodes}
    for name in ("multi_view_sampling", "distance_attention", "adaptive_mixing", "sparse_conv"):
        assert f"opus.{name}.default" in called
    for seed in (1, 2):  # other numbers of voxels
        item = random_item(source, seed)
        frame = frame_of(source, item)
        maps = [image.module(images) for images in frame.images.split(N)]
        levels = [torch.cat(level) for level in zip(*maps, strict=True)]
        found = Voxels(*trace.module()(*levels, *geometry_tensors(frame)))
        agreement = compare(predict(source, item), found)
        assert agreement.expected > 100
        assert agreement.share == 1 and agreement.score_error < 1e-4, agreement


def test_a_package_reads_images_of_any_strides() -> None:
    """A compiled function reads memory in the order it was compiled for: row by row."""
    source = build_source("v2", **ONE_LAYER)
    frame = frame_of(source, random_item(source, 1))
    given: list[torch.Tensor] = []

    def image(images: torch.Tensor) -> list[torch.Tensor]:
        given.append(images)
        return [images.float()]

    def decoder(*tensors: torch.Tensor) -> list[torch.Tensor]:
        given.extend(tensors)
        return [torch.zeros(1, 3), torch.zeros(1), torch.zeros(1)]

    runner = ProgramRunner.__new__(ProgramRunner)
    runner.image, runner.decoder, runner.num_cams = image, decoder, N
    last = frame.images.contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    runner(replace(frame, images=last, occ2img=frame.occ2img.mT.contiguous().mT))
    assert len(given) > 2 and all(tensor.is_contiguous() for tensor in given)
    assert torch.equal(torch.cat(given[:-2]), frame.images)
    assert torch.equal(given[-1], frame.occ2img)


@long
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
@pytest.mark.parametrize("kind", ["v2", "v2_plus", "v1", "v2_fusion"])
def test_package_predicts_the_same_from_python_and_cpp(kind: str, tmp_path: Path) -> None:
    source = build_source(kind)
    package = write_program(source, program_functions(source), tmp_path / "model.pt2")
    item = random_item(source, 1)
    frame = frame_of(source, item)
    expected = predict(source, item)
    found = ProgramRunner(package, N)(frame)
    agreement = compare(expected, found)
    assert agreement.expected > 20 and agreement.share == 1, agreement
    write_frame(frame, N, tmp_path / "frame.npz")
    program = build_cpp(tmp_path / "build")
    command = [str(program), str(package), str(ops.library_path()), "frame.npz", "voxels.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = torch.from_numpy(np.load(tmp_path / "voxels.npy"))
    again = Voxels(table[:, :3].long(), table[:, 3].long(), table[:, 4])
    assert torch.equal(again.coords, found.coords) and torch.equal(again.scores, found.scores)


def build_cpp(folder: Path) -> Path:
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    configure = ["cmake", "-S", str(ROOT / "examples/cpp"), "-B", str(folder), prefix]
    for command in (configure, ["cmake", "--build", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "occupancy"


def test_example_is_short() -> None:
    files = (ROOT / "examples/cpp").iterdir()
    assert sum(len(path.read_text().splitlines()) for path in files) < 200


def test_errors_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs/toy/opusv2-nano_toy.py")
    for option in (["--out", "model.onnx"], ["--out", "model.pt2", "--frame", "frame"]):
        code = program_command.main(["--config", config, "--weights", "none.pth", *option])
        assert code == 2
        printed = capsys.readouterr().err
        assert "does not end in" in printed and len(printed.splitlines()) == 1
