"""Consistency of the documentation: links, anchors, navigation, commands, versions."""

from __future__ import annotations

import posixpath
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from models.version import __version__
from scripts.build.docs_site import FENCED, links, module_sections, outside_docs, source_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES]
URL = re.compile(r"https?://")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return the anchors of a page's headings, as GitHub and Python-Markdown make them."""
    text = FENCED.sub("", path.read_text())
    found = []
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", title.lower()).strip()
        found.append(re.sub(r" +", "-", plain))
    return frozenset(found)


@pytest.mark.parametrize("path", TEXTS, ids=page_id)
def test_link_targets_exist(path: Path) -> None:
    """Every relative link names an existing file of the repository and an existing anchor."""
    text = path.read_text()
    for match in links(text):
        target = (path.parent / match["path"]).resolve()
        assert target.is_relative_to(ROOT) and target.exists(), match[0]
        if match["anchor"]:
            assert match["anchor"][1:] in anchors(target), match[0]
    for own in re.findall(r"\]\(#([^)]+)\)", text):
        assert own in anchors(path), own


def nav_pages(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in nav_pages(value)]


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = nav_pages(config["nav"])
    assert len(listed) == len(set(listed))
    pages = {str(path.relative_to(ROOT / "docs")) for path in PAGES}
    assert set(listed) == pages | {"changelog.md"}, "list each page of docs/ in mkdocs.yml"


def test_every_picture_is_shown() -> None:
    shown = {
        posixpath.normpath(posixpath.join(path.parent.relative_to(ROOT), name))
        for path in TEXTS
        for name in re.findall(r'(?:\]\(|src=")([^)"]+)', path.read_text())
    }
    for picture in (ROOT / "docs" / "images").iterdir():
        assert page_id(picture) in shown, picture.name


def test_links_out_of_docs_get_a_page_of_the_site() -> None:
    assert outside_docs("models.md", "../configs/toy/opusv2-nano_toy.py") == (
        "configs/toy/opusv2-nano_toy.py"
    )
    assert outside_docs("tutorials/add_a_head.md", "../settings.md") is None
    assert source_page("CHANGELOG.md") == "changelog.md"
    text = "[a](x.md#y) ![b](z.png) [c](https://x.org/y)\n```\n[d](e.md)\n```\n"
    assert [match[0] for match in links(text)] == ["x.md#y", "z.png"]


def test_the_reference_lists_every_public_operation() -> None:
    """A new module of operations gets a section without a change of the page."""
    page = (ROOT / "docs" / "reference" / "ops.md").read_text()
    assert "\n::: models.ops.*\n" in page
    sections = module_sections("models.ops")
    for module in (ROOT / "models" / "ops").glob("[!_]*.py"):
        assert f"## {module.stem}\n\n::: models.ops.{module.stem}\n" in sections
    assert "_extension" not in sections


@cache
def known_options() -> frozenset[str]:
    """Return every option that a command of the project defines."""
    sources = [ROOT / name for name in ("train.py", "val.py", "visualize.py")]
    for folder in ("scripts", "examples", "benchmarks"):
        sources += (ROOT / folder).rglob("*.py")
    found: set[str] = set()
    for source in sources:
        found.update(re.findall(r'"(--[a-z][a-z-]+)"', source.read_text()))
    return frozenset(found | {"--help"})


@pytest.mark.parametrize("path", TEXTS, ids=page_id)
def test_commands_exist(path: Path) -> None:
    """The files and options of the commands on a page exist."""
    for command in re.findall(r"(?:python|bash) ([^`\n]*)", path.read_text()):
        file = command.split()[0]
        if not file.endswith((".py", ".sh")) or "/" in file.strip("./").replace("scripts/", ""):
            continue
        if file != "scripts/NAME.py":
            assert (ROOT / file).is_file() or file == "setup.py", command
        for option in re.findall(r"(?<=[\s\[])--[a-z][a-z-]+", command.replace("\\", "")):
            assert option in known_options() or file == "setup.py", f"{option} of {command}"


def test_one_version() -> None:
    """Package, citation and changelog name the same release."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$",
        (ROOT / "CHANGELOG.md").read_text(),
        re.MULTILINE,
    )
    assert citation["version"] == __version__ == released[0][0]
    assert str(citation["date-released"]) == released[0][1]
    assert 'version=runpy.run_path(str(native_build.ROOT / "models" / "version.py"))' in (
        (ROOT / "setup.py").read_text()
    )
