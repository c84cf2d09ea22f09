"""The notebook runs from the first cell to the last, and is stored without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.inference.conftest import ROOT, ToyCase

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def test_it_is_small_and_holds_no_outputs() -> None:
    assert NOTEBOOK.stat().st_size < 20_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_it_runs(toy_case: ToyCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (
        cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    parameters.source = (
        "from pathlib import Path\n"
        f"CONFIG, WEIGHTS = {str(toy_case.config)!r}, {str(toy_case.weights)!r}\n"
        f"INFOS = {str(toy_case.info_file)!r}"
    )
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert "image/png" in kinds and "text/html" in kinds
    text = "".join(output.get("text", "") for output in outputs)
    assert "dropped cameras: CAM_BACK" in text
    assert len(list((tmp_path / "outputs" / "quickstart").iterdir())) == 4
