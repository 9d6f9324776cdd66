"""The page of results gets its numbers from the studies' tables."""

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
fill = runpy.run_path(str(DOCS / "fill_results.py"))["fill"]


def test_tables_are_replaced_and_words_stay(tmp_path):
    page = "Before.\n<!-- table main -->\n| old |\n<!-- end -->\nAfter.\n<!-- table a/b -->\n<!-- end -->\n"
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "table.md").write_text("A description.\n\n| new |\n|-----|\n")
    filled = fill(page, tmp_path)
    assert filled == (
        "Before.\n<!-- table main -->\n| new |\n|-----|\n<!-- end -->\nAfter.\n"
        "<!-- table a/b -->\n*Not run yet.*\n<!-- end -->\n"
    )
    assert fill(filled, tmp_path) == filled
    (tmp_path / "main" / "table.md").write_text("| one |\n|---|\n\nDifferences:\n\n| two |\n|---|\n")
    assert "<!-- table main -->\n| one |\n|---|\n\nDifferences:\n\n| two |\n|---|\n<!-- end -->" in fill(
        page, tmp_path
    )


def test_the_page_has_a_place_for_every_study():
    page = (DOCS / "results.md").read_text()
    for study in (DOCS.parent / "examples" / "studies").glob("*.yaml"):
        assert f"<!-- table {study.stem}" in page, study.name
