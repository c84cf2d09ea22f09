"""The CUDA sources compile without a GPU and warnings, and spill almost no registers."""

from __future__ import annotations

import pytest

from scripts.build import cuda_compiler, native_build

PTXAS = """
ptxas info    : Compiling entry function '_Z6kernelIfEvPT_' for 'sm_80'
ptxas info    : Function properties for _Z6kernelIfEvPT_
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 37 registers, used 1 barriers, 1024 bytes smem, 372 bytes cmem[0]
ptxas info    : Compiling entry function '_Z6kernelIfEvPT_' for 'sm_90'
ptxas info    : Function properties for _Z6kernelIfEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, 372 bytes cmem[0]
"""


def test_report_of_the_assembler_is_read() -> None:
    first, second = cuda_compiler.parse_report(PTXAS)
    assert first == cuda_compiler.KernelUse("kernel<float>", "80", 37, 16, 12, 1024)
    assert second == cuda_compiler.KernelUse("kernel<float>", "90", 12, 0, 0, 0)
    assert "| `kernel<float>` | 37 / 16 / 12 / 1024 | 12 / 0 / 0 / 0 |" in cuda_compiler.report(
        [first, second]
    )


def test_all_sources_compile() -> None:
    """Compile for the newest architecture to save time; `make cuda-report` compiles for all."""
    newest = native_build.REPORTED_ARCHITECTURES[-1]
    uses = cuda_compiler.compile_all(jobs=2, architectures=(newest,))
    assert {use.architecture for use in uses} == {newest}
    text = " ".join(use.kernel for use in uses)
    for kernel in ("sampling_forward", "attention_forward", "mixing_forward", "find_keys",
                   "mark_keys", "sum_losses", "tiled_kernel", "sample_kernel", "rays_kernel",
                   "CastRays", "Search", "AddAtomic"):  # fmt: skip
        assert kernel in text
    assert len(uses) >= len(native_build.find_sources(".cu"))
    # The tree search spills two doubles on some architectures, in addition to its stack.
    spilling = [use for use in uses if use.spill_bytes > 16]
    assert not spilling, cuda_compiler.report(spilling)


def test_a_warning_is_an_error(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_build, "ROOT", tmp_path)
    (tmp_path / "unused.cu").write_text("void f() { int unused = 1; }\n")
    cuda_home = native_build.find_cuda_home()
    assert cuda_home is not None
    with pytest.raises(cuda_compiler.CompileError, match=r"unused\.cu: .*nvcc"):
        cuda_compiler.compile_source("unused.cu", cuda_home, tmp_path)
