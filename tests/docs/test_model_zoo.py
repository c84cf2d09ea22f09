"""The model zoo lists every config, and page and index agree."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {str(p.relative_to(ROOT)) for p in (ROOT / "configs").glob("[!_]*/*.py")}
PAGE = (ROOT / "docs" / "model_zoo.md").read_text()
INDEX: dict[str, Any] = yaml.safe_load((ROOT / "model-index.yml").read_text())
MODELS = {model["Config"]: model for model in INDEX["Models"]}


def table_rows() -> dict[str, dict[str, str]]:
    """Return the rows of the page's tables: config to column to cell."""
    rows: dict[str, dict[str, str]] = {}
    head: list[str] = []
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| config"):
            head = cells
        elif found := re.match(r"\[(.+)\]\(\.\./(.+)\)", cells[0]):
            name, config = found.groups()
            if config.startswith("configs/"):
                assert name == Path(config).stem and config not in rows
                rows[config] = dict(zip(head, cells, strict=True))
    return rows


def test_every_config_is_listed() -> None:
    assert set(table_rows()) == CONFIGS
    assert set(MODELS) == {name for name in CONFIGS if not name.startswith("configs/toy/")}


def test_page_and_index_agree() -> None:
    rows = table_rows()
    scored = 0
    for config, model in MODELS.items():
        row, metadata = rows[config], model["Metadata"]
        assert model["Name"] == Path(config).stem
        assert row["epochs"] == str(metadata["Epochs"]) == re.search(r"_(\d+)e\.py", config)[1]  # type: ignore[index]
        results = model.get("Results", [])
        metrics = {name: v for result in results for name, v in result["Metrics"].items()}
        shown = {name: row[name] for name in row if "IoU" in name and row[name]}
        assert shown == {name: str(value) for name, value in metrics.items()}
        assert row.get("FPS", "") == str(metadata.get("FPS", ""))
        scored += bool(metrics)
        if len(metrics) == 5:  # RayIoU is the mean over its three tolerances, here rounded
            parts = [metrics[f"RayIoU@{m}"] for m in (1, 2, 4)]
            assert abs(metrics["RayIoU"] - sum(parts) / 3) < 0.11, config
    assert scored == 18


def test_weight_files_are_those_whose_parameters_are_tested() -> None:
    """A config has a weight file if and only if there is a manifest of the checkpoint."""
    packed = (ROOT / "tests" / "golden" / "checkpoint_manifests.json.xz").read_bytes()
    published = set(json.loads(lzma.decompress(packed)))
    named = {model["Name"] for model in MODELS.values() if "Weights File" in model["Metadata"]}
    assert named == published
    for model in MODELS.values():
        assert model["Metadata"].get("Weights File", model["Name"] + ".pth") == (
            model["Name"] + ".pth"
        )
    collections = {collection["Name"] for collection in INDEX["Collections"]}
    assert {model["In Collection"] for model in MODELS.values()} <= collections
