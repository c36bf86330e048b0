"""The notebooks of examples/ run from top to bottom, and show nothing of the machine that ran them."""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


@every_notebook
def test_cells_are_python_and_import_what_exists(path: Path) -> None:
    for source in code(path):
        python = "\n".join(line for line in source.splitlines() if not line.startswith("!"))
        for node in ast.walk(ast.parse(python)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)


@every_notebook
def test_outputs_are_small_and_of_no_machine(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 300_000
    assert not re.search(r"/(home|root|tmp|work|usr)/|\\u001b|Traceback", text)
    cells = nbformat.read(path, as_version=4).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem == "quickstart" else ()) for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pretrained").symlink_to(FOLDER.parent / "pretrained")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=230, kernel_name="python3", resources=resources).execute()
    results = [
        output["data"]["text/plain"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    if path.stem == "quickstart":
        assert float(results[-1]) > 900  # of 1,000: the trained policy, loaded again
    else:
        before, after = ast.literal_eval(results[2])
        assert after > before + 0.2
        assert results[-2] == "True"  # both copies went the same way
