"""Tables of single clouds, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from point_peft_hf.scenes import SceneSegmentationTask
from point_peft_hf.training import ClassificationTask, SegmentationTask
from point_peft_hf.training.evaluation import evaluate_rows


def dataset(count):
    return SimpleNamespace(
        sample_ids=np.arange(count), names_of=lambda numbers: [f"cloud {number}" for number in numbers]
    )


def test_classes_from_logits():
    task = ClassificationTask(["a", "b"], None, None, None)
    logits = torch.log(torch.tensor([[0.75, 0.25], [0.9, 0.1], [0.2, 0.8]]))
    found = evaluate_rows(task, dataset(3), [logits, torch.tensor([0, 1, 1])])
    assert [row["file"] for row in found.predictions] == ["cloud 1", "cloud 0", "cloud 2"]
    assert [row["predicted"] for row in found.predictions] == ["a", "a", "b"]
    assert found.predictions[0]["probability of true"] == pytest.approx(0.1)
    assert found.summary["accuracy"] == pytest.approx(2 / 3)
    assert found.summary["accuracy"] == pytest.approx(task.measure(logits, torch.tensor([0, 1, 1]))["accuracy"])


def test_parts_are_measured_by_object_and_by_part():
    task = SegmentationTask(["lid", "body", "leg"], ["jar", "desk"], [[0, 1], [2]], None, None, None)
    predicted = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2], [1, 1, 1, 1]])
    labels = torch.tensor([[0, 1, 1, 1], [2, 2, -100, 2], [-100, -100, -100, -100]])
    categories = torch.tensor([0, 1, 0])
    found = evaluate_rows(task, dataset(3), [predicted, labels, categories])
    # The jar: 1 of 2 points for the lid, 2 of 3 for the body. An object without labels comes last.
    assert [row["file"] for row in found.predictions] == ["cloud 0", "cloud 1", "cloud 2"]
    assert found.predictions[0] | {} == {
        "file": "cloud 0",
        "category": "jar",
        "miou": pytest.approx((1 / 2 + 2 / 3) / 2),
        "accuracy": pytest.approx(3 / 4),
        "points": 4,
    }
    assert np.isnan(found.predictions[2]["miou"])
    expected = task.metrics()
    expected.update(predicted, labels, categories)
    assert {name: found.summary[name] for name in expected.compute()} == expected.compute()
    assert found.classes[0] == {"class": "lid", "iou": 0.5, "accuracy": 1.0, "points": 1}
    np.testing.assert_array_equal(found.confusion, [[1, 0, 0], [1, 2, 0], [0, 0, 3]])


def test_scenes_are_measured_by_the_classes_in_them(tmp_path):
    task = SceneSegmentationTask(["floor", "wall", "sofa"], None, None, None)
    confusions = torch.tensor([[[4, 0, 0], [0, 2, 0], [0, 0, 0]], [[1, 1, 0], [0, 0, 0], [0, 0, 2]]])
    found = evaluate_rows(task, dataset(2), [confusions, confusions.sum(dim=(1, 2))])
    # The second scene: floor 1 of 2, wall 0 of 1, sofa whole.
    assert [(row["file"], row["miou"]) for row in found.predictions] == [("cloud 1", 0.5), ("cloud 0", 1.0)]
    assert found.summary["miou"] == pytest.approx((5 / 6 + 2 / 3 + 1) / 3)
    assert {path.name for path in found.write(tmp_path)} == {
        "summary.json",
        "classes.csv",
        "predictions.csv",
        "confusion.csv",
    }
    lines = (tmp_path / "confusion.csv").read_text().splitlines()
    assert lines[:2] == ["true class,floor,wall,sofa", "floor,5,1,0"]
