"""The demo page, as far as it goes without a browser."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model

from point_peft_hf import (
    PointCloudProcessor,
    PointMAEConfig,
    PointMAEForClassification,
    PointPeftConfig,
    build_point_prior_bank,
)
from point_peft_hf.training import Predictor

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"
CLOUD = np.random.default_rng(0).normal(size=(300, 3))


@pytest.fixture(scope="module")
def demo():
    # Dataclasses look their module up by its name.
    sys.modules["demo_script"] = module = type(sys)("demo_script")
    module.__dict__.update(runpy.run_path(str(DEMO), run_name="demo_script"))
    return module


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    config = PointMAEConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_groups=8,
        group_size=8,
        patch_hidden_sizes=(8, 16, 16),
        classifier_hidden_size=16,
        id2label={0: "cup", 1: "<b>chair</b>"},
        label2id={"cup": 0, "<b>chair</b>": 1},
    )
    model = get_peft_model(PointMAEForClassification(config), PointPeftConfig(num_prompt_tokens=4, num_retrieved=2))
    batch = {"points": torch.randn(6, 64, 3), "labels": torch.tensor([0, 1] * 3), "sample_ids": torch.arange(6)}
    build_point_prior_bank(model, [batch], progress=False)
    return Predictor(model, PointCloudProcessor(num_points=128))


def test_classes_and_nearest_training_clouds(demo, predictor):
    result = demo.answer(predictor, CLOUD, "my cloud")
    expected = dict(predictor.predict(CLOUD, top=2))
    assert result.scores == pytest.approx(expected, abs=1e-5)
    assert "my cloud" in result.page
    assert len(result.neighbors) == 2
    assert all(len(row) == len(demo.NEIGHBOR_COLUMNS) for row in result.neighbors)
    assert {row[0] for row in result.neighbors} <= {"cup", "<b>chair</b>"}
    assert sum(float(row[2].rstrip(" %")) for row in result.neighbors) == pytest.approx(100, abs=0.2)


def test_the_page_answers_and_says_what_is_wrong_with_a_file(demo, predictor, tmp_path):
    pytest.importorskip("gradio")
    page = demo.build_page({"mine": predictor})
    show = next(function.fn for function in page.fns.values() if function.fn.__name__ == "show")
    message, frame, scores, neighbors = show("mine", ("sample", "teapot"))
    assert message.visible is False
    assert re.match(r'<iframe sandbox="allow-scripts" title="Point cloud" srcdoc="[^"]+"></iframe>$', frame)
    assert list(scores) == ["cup", "<b>chair</b>"]
    assert neighbors.visible is True

    file = tmp_path / "<i>scan.ply"
    file.write_text("this is no ply\n")
    message, frame, scores, neighbors = show("mine", ("file", str(file)))
    assert message.visible is True
    assert "This cloud cannot be shown.</b> &lt;i&gt;scan.ply: " in message.value
    assert str(tmp_path) not in message.value
    assert (frame, scores, neighbors.visible) == ("", None, False)


def test_without_gradio_the_error_says_what_to_install(demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["demo.py", "anywhere"])
    with pytest.raises(SystemExit, match=r"error: .*point-peft-hf\[demo\]"):
        runpy.run_path(str(DEMO), run_name="__main__")
