"""Sources of the native extension, and choice of the CUDA toolkit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from scripts.build import native_build
from scripts.runtime.errors import ConfigError


def make_toolkit(folder: Path, version: str) -> Path:
    """Make a folder that looks like a CUDA toolkit; its compiler only prints its version."""
    (folder / "bin").mkdir(parents=True)
    (folder / "include").mkdir()
    (folder / "lib").mkdir()
    (folder / "include" / "cuda_runtime_api.h").touch()
    compiler = folder / "bin" / "nvcc"
    compiler.write_text(
        f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n"
    )
    compiler.chmod(0o755)
    return folder


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Hide the CUDA toolkits of machine and environment."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(native_build.sysconfig, "get_paths", lambda: {"purelib": str(tmp_path)})
    return monkeypatch


def test_no_two_sources_share_an_object_file() -> None:
    """setup.py names object files by the source without its suffix."""
    sources = native_build.cpu_sources() + native_build.cuda_sources()
    objects = Counter(Path(source).with_suffix(".o").as_posix() for source in sources)
    assert [name for name, count in objects.items() if count > 1] == []
    assert set(sources) == {*native_build.find_sources(".cpp"), *native_build.find_sources(".cu")}


def test_every_cuda_source_has_a_launcher_and_tests() -> None:
    """The emulation needs them, see scripts/emulate_cuda.py."""
    launchers = native_build.cuda_launchers()
    assert len(set(launchers)) == len(native_build.find_sources(".cu")) > 10
    assert set(launchers) < set(native_build.find_sources(".cpp"))
    for path in launchers:
        tests = native_build.ROOT / "tests" / "ops" / f"test_{Path(path).parent.name}.py"
        assert "device: str" in tests.read_text()


def test_toolkit_of_torch_is_preferred(tmp_path: Path, alone: pytest.MonkeyPatch) -> None:
    packages = make_toolkit(tmp_path / "nvidia" / "cu13", "13.0")
    installed = make_toolkit(tmp_path / "cuda-12.6", "12.6")
    alone.setenv("PATH", f"{installed / 'bin'}:/usr/bin:/bin")
    assert native_build.find_cuda_home("13.0") == packages
    assert native_build.find_cuda_home("12.8") == installed
    assert native_build.find_cuda_home() == packages
    assert native_build.cuda_version(installed) == "12.6"


def test_compiler_without_a_toolkit_does_not_count(
    tmp_path: Path, alone: pytest.MonkeyPatch
) -> None:
    wrapped = make_toolkit(tmp_path / "local", "13.0")
    (wrapped / "include" / "cuda_runtime_api.h").unlink()
    alone.setenv("PATH", f"{wrapped / 'bin'}:/usr/bin:/bin")
    if not Path("/usr/local/cuda").exists():
        assert native_build.find_cuda_home() is None
    assert native_build.find_cuda_home() != wrapped


def test_cuda_home_is_taken_or_refused(tmp_path: Path, alone: pytest.MonkeyPatch) -> None:
    make_toolkit(tmp_path / "nvidia" / "cu13", "13.0")
    chosen = make_toolkit(tmp_path / "mine", "12.1")
    alone.setenv("CUDA_HOME", str(chosen))
    assert native_build.find_cuda_home("13.0") == chosen
    alone.setenv("CUDA_HOME", str(tmp_path / "typo"))
    with pytest.raises(ValueError, match=r"CUDA_HOME is '.*typo', which has no bin/nvcc"):
        native_build.find_cuda_home("13.0")


def test_runtime_of_the_packages_gets_the_name_that_linkers_look_for(tmp_path: Path) -> None:
    packages = make_toolkit(tmp_path / "cu13", "13.0")
    with pytest.raises(ConfigError, match=r"cu13 has no libcudart\.so"):
        native_build.cuda_library_folder(packages, tmp_path / "build")
    (packages / "lib" / "libcudart.so.13").write_text("runtime")
    for _ in range(2):  # the second build finds the first one's link
        folder = native_build.cuda_library_folder(packages, tmp_path / "build")
        assert (folder / "libcudart.so").read_text() == "runtime"
    installed = make_toolkit(tmp_path / "cuda", "13.0")
    (installed / "lib64").mkdir()
    (installed / "lib64" / "libcudart.so").touch()
    assert native_build.cuda_library_folder(installed, tmp_path / "b") == installed / "lib64"
