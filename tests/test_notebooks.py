"""The notebooks of docs say what they need, keep their outputs, and run."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# What a user is meant to import: docs/results.md, docs/guests.md, docs/distillation.md and the generated worlds.
PUBLIC = {
    "clipself_seg.clip",
    "clipself_seg.config",
    "clipself_seg.data.images",
    "clipself_seg.data.vocabulary",
    "clipself_seg.mini.writer",
    "clipself_seg.prediction.detection",
    "clipself_seg.prediction.panoptic",
    "clipself_seg.training.run",
}


def cells(path, kind):
    """Cells of a notebook of one kind, "code" or "markdown"."""
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def source(cell):
    """Text of a cell."""
    return "".join(cell["source"])


def test_there_are_three():
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_what_it_needs_and_keeps_small_outputs(path):
    first, *_ = cells(path, "markdown")
    assert "**Needs:**" in source(first) and path.stat().st_size < 300_000
    code = cells(path, "code")
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any({"image/png", "image/jpeg"} & output["data"].keys() for output in outputs)
    assert {output["output_type"] for output in outputs} <= {"execute_result", "display_data"}
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not re.search(r"/(work|root|home|tmp)/", path.read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_what_is_public_and_there(path):
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse(source(cell))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("clipself_seg"):
                module = importlib.import_module(node.module)
                assert node.module in PUBLIC
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)", "\n".join(map(source, cells(path, "markdown"))))
    assert all((path.parent / link).exists() for link in links) and links


@pytest.mark.heavy
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason='pip install "clipself_seg[notebooks]"')
    nbformat = pytest.importorskip("nbformat", reason='pip install "clipself_seg[notebooks]"')
    pytest.importorskip("ipykernel", reason='pip install "clipself_seg[notebooks]"')
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copy(path, tmp_path)
    notebook = nbformat.read(tmp_path / path.name, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    assert all(cell["execution_count"] for cell in notebook.cells if cell["cell_type"] == "code")
