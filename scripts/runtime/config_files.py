"""Reading of config files, with errors that name file and line, and the origin of every key."""

from __future__ import annotations

import ast
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from scripts.runtime.errors import ConfigError


@dataclass(frozen=True)
class ConfigFile:
    """Names that one file of a config assigns and uses.

    Attributes:
        path: The file.
        assigned: Names assigned at its top level.
        used: Names that it reads, its own or those of its base files.
    """

    path: Path
    assigned: frozenset[str]
    used: frozenset[str]


@dataclass(frozen=True)
class ConfigChain:
    """The files of a config, base files first.

    Attributes:
        files: The files in the order in which they are merged.
        sources: Maps a top-level key to the file that assigns it last.
        variables: Keys whose last assignment is used by its own file or a later one. Such a value
            reaches the config as a copy made while the files are read.
    """

    files: tuple[ConfigFile, ...]
    sources: dict[str, Path] = field(default_factory=dict)
    variables: frozenset[str] = frozenset()

    @property
    def own_names(self) -> frozenset[str]:
        """Names that the last file, given by the user, assigns."""
        return self.files[-1].assigned if self.files else frozenset()


def read_config(path: str | Path) -> Config:
    """Read a config file and its base files, without importing custom modules.

    Args:
        path: An MMEngine config.

    Returns:
        The merged config.

    Raises:
        ConfigError: The file does not exist, or running it raises an error; the message names file
            and line.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"config {path} {kind}: see configs/ for existing configs")
    try:
        return Config.fromfile(str(path), import_custom_modules=False)
    except FileNotFoundError as error:
        raise ConfigError(f"config {path} has a missing base file: {error}") from error
    except Exception as error:  # a config is a program: it may raise anything
        raise ConfigError(
            f"config {path} cannot be read: {type(error).__name__}: {_message(error)}"
            f"{_line_of(error, path)}"
        ) from error


def _message(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return error.msg
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return str(error) or "no message"


def _line_of(error: BaseException, path: Path) -> str:
    """Return the line of a config that raised an error, with the file if it is another one.

    The text is empty if the line is unknown.
    """
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})" if error.lineno else ""
    frames = traceback.extract_tb(error.__traceback__)
    library = str(Path(Config.fromfile.__code__.co_filename).parents[1])
    lines = [f for f in frames if f.filename.endswith(".py") and library not in f.filename]
    lines = [f for f in lines if f.filename != __file__]
    if not lines:
        return ""
    name = "" if Path(lines[-1].filename) == path.absolute() else f"{lines[-1].filename}, "
    return f" ({name}line {lines[-1].lineno})"


def read_chain(path: str | Path) -> ConfigChain:
    """Find the names that each file of a config assigns and uses.

    Args:
        path: A config file that `read_config` accepts.
    """
    files = tuple(_files(Path(path).absolute(), set()))
    sources = {name: file.path for file in files for name in file.assigned}
    variables = set()
    for name, source in sources.items():
        position = max(i for i, file in enumerate(files) if file.path == source)
        if any(name in file.used for file in files[position:]):
            variables.add(name)
    return ConfigChain(files, sources, frozenset(variables))


def _files(path: Path, seen: set[Path]) -> Iterator[ConfigFile]:
    if path in seen or not path.is_file():
        return
    seen.add(path)
    bases: list[Path] = []
    if path.suffix == ".py":
        text = path.read_text(encoding="utf-8")
        try:
            tree = ast.parse(text)
        except SyntaxError:  # MMEngine's placeholders are not Python
            yield ConfigFile(path, frozenset(), frozenset())
            return
        bases = _lazy_bases(tree, path)
    for base in [] if bases else Config._get_base_files(str(path)):
        bases.append(Path(Config._get_cfg_path(base, str(path))[0]))
    for base in bases:
        yield from _files(base.absolute(), seen)
    if path.suffix == ".py":
        yield ConfigFile(path, _assigned(tree), _used(tree))
    else:
        import mmengine

        yield ConfigFile(path, frozenset(mmengine.load(str(path))) - {"_base_"}, frozenset())


def _assigned(tree: ast.Module) -> frozenset[str]:
    """Return the names that a file assigns at its top level, including branches and loops."""
    names = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return frozenset(name for name in names if not name.startswith("_"))


def _used(tree: ast.Module) -> frozenset[str]:
    """Return the names that a file reads: plain names, and `_base_.name` with or without braces."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
    return frozenset(names)


def _lazy_bases(tree: ast.Module, path: Path) -> list[Path]:
    """Return the files that a config in MMEngine's newer style imports in `with read_base():`."""
    bases = []
    for node in tree.body:
        if not isinstance(node, ast.With):
            continue
        for statement in node.body:
            if isinstance(statement, ast.ImportFrom) and statement.level:
                folder = path.parents[statement.level - 1]
                bases.append(
                    folder.joinpath(*(statement.module or "").split(".")).with_suffix(".py")
                )
    return bases


def imported_names(cfg: Config) -> list[str]:
    """Return the modules in a config's `custom_imports`.

    Raises:
        ConfigError: The entry does not have MMEngine's form.
    """
    entry: Any = cfg.get("custom_imports")
    if entry is None:
        return []
    imports = entry.get("imports") if isinstance(entry, dict) else None
    names = [imports] if isinstance(imports, str) else imports
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            "custom_imports must be dict(imports=['module', ...], allow_failed_imports=False)"
        )
    return list(names)
