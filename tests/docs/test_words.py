"""The words to avoid of docs/contributing.md do not occur."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "docs" / "contributing.md"
FOLDERS = ("docs", "models", "loaders", "scripts", "tests", "benchmarks", "examples", "configs")
SUFFIXES = {".py", ".md", ".sh", ".h", ".cuh", ".cpp", ".cu", ".js", ".html", ".sbatch"}


def listed_words() -> list[str]:
    """Return the first column of the table "Words to avoid", split at commas."""
    section = LIST.read_text().split("## Words to avoid")[1].split("\n## ")[0]
    cells = re.findall(r"^\| ([^|]+?) \|", section, re.MULTILINE)[1:]
    return [word.strip() for cell in cells for word in cell.split(",") if "--" not in word]


def pattern() -> re.Pattern[str]:
    """Return a pattern for any listed word, also across line ends and comment marks."""
    alternatives = (
        r"[\s#/*]+".join(re.escape(part) for part in word.split()) for word in listed_words()
    )
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b", re.IGNORECASE)


def texts() -> list[Path]:
    files = [ROOT / "Makefile", *ROOT.glob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("*.sh")]
    for folder in FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    kept = [LIST, Path(__file__)]
    return [path for path in files if path not in kept and "vendor" not in path.parts]


def test_the_list_is_read() -> None:
    assert "says so" in listed_words() and len(listed_words()) > 15
    assert pattern().search("# which knows\n    # no classes")
    assert not pattern().search("known classes")


def test_no_listed_word_is_used() -> None:
    words, found = pattern(), []
    for path in texts():
        text = path.read_text(errors="replace")
        for match in words.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(ROOT)}:{line}: {' '.join(match[0].split())}")
    assert not found, "see docs/contributing.md, Words to avoid:\n" + "\n".join(found)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.stem)
def test_pages_are_short(path: Path) -> None:
    """A page has one title and takes a few minutes to read."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    assert len(" ".join(prose).split()) < 2000
