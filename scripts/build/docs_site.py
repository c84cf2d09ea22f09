"""MkDocs hook: pages for linked source files, the changelog, and the modules of a package.

Pages under docs/ link to configs, tests and benchmark tables by relative paths, which work in the
repository. A site contains only the files under docs/. The hook creates a page below `source/` for
every linked file and redirects the links to it, so that the site is complete without a network.

A line `::: package.*` expands to a section for every public module of the package.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Markdown link or image: [text](target) with an optional #anchor; no URLs.
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")
FENCED = re.compile(r"^(```+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
MODULES = re.compile(r"^::: (?P<package>[\w.]+)\.\*$", re.MULTILINE)
_LANGUAGES = {".py": "python", ".sh": "bash", ".yml": "yaml", ".h": "cpp", ".cu": "cuda"}


def outside_docs(page: str, target: str) -> str | None:
    """Return the repository path of a link's target; None if it is under docs/.

    Args:
        page: Path of the linking page, relative to docs/.
        target: Path as written in the link.
    """
    joined = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    if joined.startswith("docs/") or joined.startswith(".."):
        return None
    return joined


def links(markdown: str) -> list[re.Match[str]]:
    """Return the links of a page, except those in fenced code."""
    fences = [match.span() for match in FENCED.finditer(markdown)]
    found = LINK.finditer(markdown)
    return [
        match for match in found if not any(start <= match.start() < end for start, end in fences)
    ]


def source_page(path: str) -> str:
    """Return the path, relative to the site's root, of the page that shows a source file."""
    return "changelog.md" if path == "CHANGELOG.md" else f"source/{path}.md"


def render_source(path: str) -> str:
    """Return Markdown that shows a file of the repository, or lists a folder.

    These pages are excluded from the search, except for the changelog.
    """
    hidden = "---\nsearch: {exclude: true}\n---\n\n"
    file = ROOT / path
    if file.is_dir():
        names = "\n".join(f"- `{entry.name}`" for entry in sorted(file.iterdir()))
        return f"{hidden}# {path}\n\n{names}\n"
    text = file.read_text()
    if file.suffix == ".md":  # shown as text: its links may lead anywhere
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
        return plain if path == "CHANGELOG.md" else hidden + plain
    language = _LANGUAGES.get(file.suffix, "text")
    return f"{hidden}# {PurePosixPath(path).name}\n\n`{path}`\n\n````{language}\n{text}\n````\n"


def module_sections(package: str) -> str:
    """Return Markdown with a section for every public module of a package.

    Reference implementations are omitted, because they have the same arguments as the operation.
    """
    folder = ROOT / package.replace(".", "/")
    names = sorted(path.stem for path in folder.glob("[!_]*.py"))
    options = (
        "{show_root_heading: false, show_root_toc_entry: false, filters: ['!^_', '!_reference$']}"
    )
    return "\n\n".join(
        f"## {name}\n\n::: {package}.{name}\n    options: {options}" for name in names
    )


def on_files(files: Any, config: Any) -> Any:
    """Add the changelog and a page for every source file that a page links to."""
    from mkdocs.structure.files import File

    wanted = {"CHANGELOG.md"}
    for file in files.documentation_pages():
        for match in links(file.content_string):
            path = outside_docs(file.src_uri, match["path"])
            if path is not None and (ROOT / path).exists():
                wanted.add(path)
    for path in sorted(wanted):
        files.append(File.generated(config, source_page(path), content=render_source(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Redirect links to source files to their pages, and list the modules of packages."""
    markdown = MODULES.sub(lambda match: module_sections(match["package"]), markdown)
    here = page.file.src_uri
    for match in reversed(links(markdown)):
        path = outside_docs(here, match["path"])
        if path is None or files.get_file_from_path(source_page(path)) is None:
            continue  # MkDocs reports a link without a target
        target = posixpath.relpath(source_page(path), posixpath.dirname(here) or ".")
        markdown = markdown[: match.start()] + target + markdown[match.end() :]
    return markdown
