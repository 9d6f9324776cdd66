"""The demo page, as far as it goes without a browser."""

import re
import sys

import numpy as np
import pytest
import torch
from peft import get_peft_model

from point_peft_hf import (
    PointCloudProcessor,
    PointMAEConfig,
    PointMAEForClassification,
    PointMAEForSegmentation,
    PointPeftConfig,
    build_point_prior_bank,
)
from point_peft_hf.commands import demo
from point_peft_hf.data import PointCloudDataset
from point_peft_hf.io.examples import TrainingExamples
from point_peft_hf.training import PartPredictor, Predictor

CLOUD = np.random.default_rng(0).normal(size=(300, 3))


SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_groups": 8,
    "group_size": 8,
    "patch_hidden_sizes": (8, 16, 16),
    "classifier_hidden_size": 16,
}


def adapt(backbone):
    model = get_peft_model(backbone, PointPeftConfig(num_prompt_tokens=4))
    batch = {"points": torch.randn(6, 64, 3), "labels": torch.tensor([0, 1] * 3), "sample_ids": torch.arange(6)}
    build_point_prior_bank(model, [batch], progress=False)
    return model


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    names = {0: "cup", 1: "<b>chair</b>"}
    config = PointMAEConfig(**SIZES, id2label=names, label2id={name: index for index, name in names.items()})
    return Predictor(adapt(PointMAEForClassification(config)), PointCloudProcessor(num_points=128))


@pytest.fixture(scope="module")
def part_predictor():
    torch.manual_seed(0)
    names = dict(enumerate(["back", "seat", "lid", "body"]))
    config = PointMAEConfig(
        **SIZES,
        id2label=names,
        label2id={name: index for index, name in names.items()},
        num_categories=2,
        category_names=["chair", "vase"],
        category_parts=[[0, 1], [2, 3]],
    )
    return PartPredictor(adapt(PointMAEForSegmentation(config)), PointCloudProcessor(num_points=128))


def test_classes_and_nearest_training_clouds(predictor):
    result = demo.answer(predictor, CLOUD, "my cloud")
    expected = dict(predictor.predict(CLOUD, top=2))
    assert result.scores == pytest.approx(expected, abs=1e-5)
    assert "my cloud" in result.page
    assert len(result.references) == 2
    assert all(len(row) == len(demo.REFERENCE_COLUMNS) for row in result.references)
    assert {row[0] for row in result.references} <= {"cup", "<b>chair</b>"}
    assert sum(float(row[1].rstrip(" %")) for row in result.references) == pytest.approx(100, abs=0.2)


def test_shares_of_parts_and_nearest_training_clouds(part_predictor):
    result = demo.answer(part_predictor, CLOUD, "my vase", "vase")
    assert result.scores == pytest.approx(part_predictor.predict(CLOUD, "vase").shares(), abs=0.05)
    assert set(result.scores) <= {"lid", "body"}
    assert {row[0] for row in result.references} <= {"chair", "vase"}


def test_the_page_asks_for_a_category_where_the_adapter_needs_one(predictor, part_predictor):
    pytest.importorskip("gradio")
    page = demo.build_page({"classes": predictor, "parts": part_predictor})
    functions = {function.fn.__name__: function.fn for function in page.fns.values()}
    change, show = functions["change_adapter"], functions["show"]

    def choose(adapter, category):
        return change(adapter, category, "teapot", ("sample", "teapot"))[0]

    shown = choose("parts", None)
    assert ([value for _, value in shown.choices], shown.value, shown.visible) == (["chair", "vase"], "chair", True)
    assert choose("parts", "vase").value == "vase"
    assert choose("classes", "vase").visible is False
    assert set(show("parts", ("sample", "teapot"), "vase")[2]) <= {"lid", "body"}
    assert set(show("classes", ("sample", "teapot"), "vase")[2]) == {"cup", "<b>chair</b>"}


def test_the_page_answers_and_says_what_is_wrong_with_a_file(predictor, tmp_path):
    gradio = pytest.importorskip("gradio")
    page = demo.build_page({"mine": predictor})
    show = next(function.fn for function in page.fns.values() if function.fn.__name__ == "show")
    message, frame, scores, references, gallery = show("mine", ("sample", "teapot"), None)
    assert message.visible is False
    assert re.match(r'<iframe sandbox="allow-scripts" title="Point cloud" srcdoc="[^"]+"></iframe>$', frame)
    assert list(scores) == ["cup", "<b>chair</b>"]
    assert references.visible is True
    assert gallery.visible is False

    file = tmp_path / "<i>scan.ply"
    file.write_text("this is no ply\n")
    message, *others = show("mine", ("file", str(file)), None)
    assert message.visible is True
    assert "This cloud cannot be shown.</b> &lt;i&gt;scan.ply: " in message.value
    assert str(tmp_path) not in message.value
    assert others == [gradio.skip()] * 4


def test_without_gradio_the_error_says_what_to_install(point_peft, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r"error: .*gradio.*pip install .*\[demo\]"):
        point_peft("demo", "anywhere")


def test_it_starts_with_a_training_cloud_and_shows_those_it_is_like(predictor, tmp_path):
    pytest.importorskip("gradio")
    clouds = [np.random.default_rng(index).normal(size=(200, 3)).astype(np.float32) for index in range(6)]
    dataset = PointCloudDataset(clouds, [0, 1] * 3, ["cup", "chair"])
    TrainingExamples.of(dataset, predictor.processor).save(tmp_path)
    examples = TrainingExamples.load(tmp_path)
    page = demo.build_page({"mine": predictor}, {"mine": examples})
    show = next(function.fn for function in page.fns.values() if function.fn.__name__ == "show")
    choices = demo.choices_of(predictor, examples)
    assert choices[:3] == ["cup: cloud 0", "<b>chair</b>: cloud 1", demo.HELD_OUT_CLASSES[0]]
    message, frame, scores, references, gallery = show("mine", ("sample", choices[1]), None)
    assert message.visible is references.visible is False
    # The processor takes 128 of the 200 points, and here of 2,048 with the same ones repeated.
    assert scores == pytest.approx(dict(predictor.predict(examples.clouds[1], top=2)), abs=1e-5)
    assert gallery.visible is True
    thumbnails = demo.answer(predictor, clouds[0], "mine", examples=examples).thumbnails
    assert len(thumbnails) == 2
    assert re.match(r"(cup|<b>chair</b>), [\d.]+ % · cloud \d", thumbnails[0][1])


def test_a_thumbnail_is_drawn_y_up():
    points = np.array([[127, 255, 127]] * 3, dtype=np.uint8)
    image = demo.draw_thumbnail(points)
    rows, columns = np.nonzero((image != 246).any(axis=2))
    assert rows.max() < 25
    assert abs(columns.mean() - demo.THUMBNAIL / 2) < 2
