"""The notebook runs, and is stored with its pictures."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "visualize_attention_map.ipynb"
NETWORK_PNGS = {f"{network}-{image}.png" for network in ("vit", "cnn") for image in ("correct", "wrong")}
PNGS = {"heads.png", "methods.png", *NETWORK_PNGS, "masks.png", "faithfulness.png"}


def count_outputs(notebook, kind):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum(kind in output.get("data", {}) for output in outputs)


def test_the_notebook_runs_from_top_to_bottom(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("VIT_RUN", str(runs / "model" / "vit"))
    monkeypatch.setenv("CNN_RUN", str(runs / "model" / "cnn"))
    monkeypatch.setenv("DATA_PATH", os.devnull)  # the shapes data set needs no folder
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    pictures = {path.name for path in (tmp_path / "output" / "notebook").iterdir()}
    assert pictures == {*PNGS, "layers.gif"}
    assert count_outputs(notebook, "image/png") == len(PNGS)
    assert count_outputs(notebook, "image/gif") == 1


def test_the_notebook_is_stored_with_its_pictures():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert count_outputs(notebook, "image/png") == len(PNGS)
    assert count_outputs(notebook, "image/gif") == 1
    assert NOTEBOOK.stat().st_size < 3e6
