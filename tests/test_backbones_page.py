"""The page of backbones is what its script writes."""

import runpy
from pathlib import Path

from point_peft_hf.models.auto import CONFIGURATIONS, SCENE_CONFIGURATIONS

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_page_is_current():
    page = runpy.run_path(str(DOCS / "fill_backbones.py"))["page"]()
    assert (DOCS / "backbones.md").read_text(encoding="utf-8") == page
    for config in CONFIGURATIONS + SCENE_CONFIGURATIONS:
        assert f"`{config.model_type}`" in page
