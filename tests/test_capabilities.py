"""The page of capabilities: what it says is what the types do; a sample, as the whole takes minutes."""

import re
import runpy
from pathlib import Path

import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

DOCS = Path(__file__).resolve().parents[1] / "docs"
MODULE = runpy.run_path(str(DOCS / "fill_capabilities.py"))
QUICK = [capability for capability in MODULE["CAPABILITIES"] if capability != "export"]


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, str]]:
    """The cells of the page, by type and capability."""
    page = (DOCS / "capabilities.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {name.strip("`"): dict(zip(rows[0][1:], cells, strict=True)) for name, *cells in rows[1:]}


def able(cell: str) -> set[str]:
    """The backbones that a cell names."""
    backbones = set(MODULE["BACKBONES"])
    return {"yes": backbones, "no": set()}.get(cell) or backbones & set(cell.split(", "))


def test_the_page_has_every_type_and_capability(table):
    assert list(table) == MODULE["type_names"]()
    assert all(list(row) == list(MODULE["CAPABILITIES"]) for row in table.values())
    refused = set(MODULE["PEFT_REFUSED"])
    names = {member.value.lower() for member, c in PEFT_TYPE_TO_CONFIG_MAPPING.items() if "peft." in c.__module__}
    assert refused <= names


@pytest.mark.parametrize(
    ("name", "backbone"),
    [("pointgst", "Point-MAE"), ("geometry_adapter", "Point-M2AE"), ("lora", "PointGPT"), ("boft", "Point-BERT")],
)
def test_the_page_says_what_a_type_does(name, backbone, table):
    found = {capability for capability in QUICK if MODULE["probe"](name, backbone, capability) is None}
    assert found == {capability for capability in QUICK if backbone in able(table[name][capability])}


@pytest.mark.parametrize("names", [("pointlora", "ppt"), ("dapt", "stag")], ids=" ".join)
def test_the_page_says_which_types_mix(names):
    page = (DOCS / "capabilities.md").read_text(encoding="utf-8")
    assert tuple(names) in MODULE["own_pairs"]()
    assert (MODULE["probe_pair"](names) is None) == ("`{}` with `{}`".format(*names) not in page)


def test_cells_and_reasons():
    reasons = {"Point-MAE": None, "PointGPT": "it has no slots"}
    assert MODULE["cell"](reasons) == "Point-MAE"
    assert MODULE["cell"]({"Point-MAE": None}) == "yes"
    assert MODULE["cell"]({"Point-MAE": "broken"}) == "no"
    pairs = {("one", "two"): None, ("one", "three"): "no room", ("two", "three"): "no room"}
    page = MODULE["render"]({"some_type": {"trains": reasons, "saves": reasons}}, pairs)
    assert "- no room: `one` with `three`, `two` with `three`\n" in page
    assert "| `some_type` | Point-MAE | Point-MAE |" in page
    assert "- it has no slots: `some_type` (trains, saves)" in page
    assert re.search(r"- `prefix_tuning`: ", page)


def test_what_fails_has_a_reason(monkeypatch):
    def fail(probe):
        raise KeyError("first sentence. second sentence")

    monkeypatch.setitem(MODULE["CAPABILITIES"], "trains", fail)
    assert MODULE["probe"]("lora", "Point-MAE", "trains") == "'first sentence"
