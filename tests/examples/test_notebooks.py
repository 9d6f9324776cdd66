"""The code of the notebooks runs, with fewer clouds and epochs than a person gives them."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
# Values in the place of those in the cell that is tagged "parameters".
SMALL = {
    "compare_three_methods": {"METHODS": ["linear", "lora"], "CLOUDS_PER_CLASS": 3, "EPOCHS": 1, "TEST_CLOUDS": 24},
    "first_adapter": {"CLOUDS_PER_CLASS": 3, "EPOCHS": 1, "TEST_CLOUDS": 24},
    "own_scans": {"SCANS_PER_CLASS": 5, "NEW_SCANS_PER_CLASS": 1, "EPOCHS": 1, "CLASSES": ["mug", "hammer"]},
}


def code_cells(name: str) -> list[dict]:
    notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_is_tested():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_installs_first_and_stores_no_outputs(name):
    cells = code_cells(name)
    assert "".join(cells[0]["source"]).startswith("%pip install")
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for index, cell in enumerate(code_cells(name)):
        source = re.sub(r"^[%!].*$", "", "".join(cell["source"]), flags=re.MULTILINE)
        exec(compile(source, f"{name}, code cell {index}", "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(SMALL[name]) <= set(namespace)
            namespace |= SMALL[name]
    assert (tmp_path / "outputs").is_dir()
