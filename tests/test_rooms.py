"""Allowed imports between the parts of the code base."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each room and the other rooms that it may import; a file is in the most specific room.
ALLOWED: dict[str, set[str]] = {
    "models.errors": set(),
    "models.bounded_cache": set(),
    "models.ops": {"models.errors"},
    "models": {"models.ops", "models.errors", "models.bounded_cache"},
    "loaders": {"models.ops", "models.errors", "models.bounded_cache"},
    "scripts.build": {"scripts.runtime"},
    "scripts.runtime": {"models", "models.ops", "models.errors", "loaders"},
}
for library in (
    "checkpoints",
    "export",
    "golden",
    "sweep_infos",
    "data_checks",
    "packing",
    "toy_nuscenes",
    "scoring",
    "timings",
    "visualization",
):
    ALLOWED[f"scripts.{library}"] = ALLOWED["scripts.runtime"] | {"scripts.runtime"}
ALLOWED["scripts.gpu_checks"] = {"models", "models.ops", "scripts.runtime"}
# All predictions use one library; the Inferencer draws with the renderer.
ALLOWED["scripts.prediction"] = ALLOWED["scripts.golden"]
ALLOWED["scripts.visualization"] = ALLOWED["scripts.golden"] | {"scripts.prediction"}
ALLOWED["scripts.export"] = ALLOWED["scripts.visualization"]
ALLOWED["scripts.inference"] = ALLOWED["scripts.visualization"] | {"scripts.visualization"}
ALLOWED["models.inference"] = {"scripts.inference", "scripts.prediction"}  # only an entry
ALLOWED["scripts.fuzzing"] = ALLOWED["scripts.golden"] | {"scripts.sweep_infos"}
ALLOWED["scripts.drills"] = ALLOWED["scripts.golden"]
ALLOWED["scripts.toy_runs"] = {"models.errors", "scripts.runtime", "scripts.visualization"}
LIBRARIES = set(ALLOWED) - {"scripts"}
# Commands are directly in scripts/, the main ones at the top level.
ALLOWED["commands"] = LIBRARIES


def room_of(module: str) -> str | None:
    """Return the room of a dotted module name; None for modules of other projects."""
    if module.split(".")[0] not in ("models", "loaders", "scripts", "train", "val", "visualize"):
        return None
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in LIBRARIES:
            return ".".join(parts[:length])
    return "commands"


def imported_modules(path: Path, module: str) -> set[str]:
    """Return every module that a file imports, also in functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")
            base = package[: len(package) - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


def sources() -> list[Path]:
    folders = (ROOT / name for name in ("models", "loaders", "scripts"))
    files = [path for folder in folders for path in folder.rglob("*.py")]
    return [*files, *(ROOT / f"{name}.py" for name in ("train", "val", "visualize"))]


def violations(files: list[Path]) -> list[str]:
    found = []
    for path in files:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        room = room_of(module.removesuffix(".__init__"))
        assert room is not None
        for name in imported_modules(path, module):
            target = room_of(name)
            # A command may not import another command either.
            if target in (None, *ALLOWED[room]) or (target == room != "commands"):
                continue
            found.append(f"{module} imports {name}: {room} may not import {target}")
    return found


def test_imports_go_downwards_only() -> None:
    files = sources()
    assert len(files) > 150
    assert not violations(files)


def test_an_upward_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for name, line in (
        ("scripts/runtime/a.py", "from scripts.visualization.sheet import x"),
        ("models/b.py", "import loaders.sample"),
        ("scripts/c.py", "from scripts.demo import main"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"def f():\n    {line}\n")
        assert len(violations([path])) == 1, name


def test_commands_are_thin() -> None:
    for path in (ROOT / "scripts").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 10, path


def test_no_command_patches_the_import_path() -> None:
    for path in (ROOT / "scripts").rglob("*.py"):
        assert "sys.path" not in path.read_text(), path
