import math

import pytest
import torch

from point_peft_hf.scenes import SceneMetrics, class_weights


def test_measures_by_hand():
    metrics = SceneMetrics(["floor", "wall", "chair", "lamp"])
    # floor: 3 right of 4, wall: 1 of 2, taken once for floor; chair never occurs, but is predicted once.
    metrics.update(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 0, 0]))
    metrics.update(torch.tensor([1, 0, 1, 1]), torch.tensor([1, 1, -100, -100]))
    found = metrics.compute()
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["mean_accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["miou"] == pytest.approx((3 / 5 + 1 / 2 + 0) / 3)
    classes = metrics.per_class()
    assert classes["floor"] == {"iou": pytest.approx(3 / 5), "accuracy": pytest.approx(3 / 4), "points": 4}
    assert classes["chair"]["iou"] == 0
    assert math.isnan(classes["chair"]["accuracy"])
    assert math.isnan(classes["lamp"]["iou"])


def test_nothing_labelled_counts_nothing():
    metrics = SceneMetrics(["a", "b"])
    metrics.update(torch.tensor([0, 1]), torch.tensor([-100, -100]))
    assert metrics.compute() == {"miou": 0.0, "mean_accuracy": 0.0, "accuracy": 0.0}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("none", None), ("balanced", [0.08, 0.32, 1.0, 2.6]), ("inverse_sqrt", [0.5, 1.0, 1.0, 1.5])],
)
def test_weights_of_classes(mode, expected):
    weights = class_weights([900, 225, 0, 100] if mode == "inverse_sqrt" else [325, 81.25, 0, 10], mode)
    if expected is None:
        assert weights is None
        return
    assert weights[2] == 1
    occurring = [weights[0], weights[1], weights[3]]
    assert sum(occurring) == pytest.approx(3)
    power = 1 if mode == "balanced" else 2
    assert (weights[1] / weights[0]) ** power == pytest.approx(4)


def test_unknown_weights():
    with pytest.raises(ValueError, match="one of none, balanced, inverse_sqrt, got 'equal'"):
        class_weights([1], "equal")
    with pytest.raises(ValueError, match="no class occurs"):
        class_weights([0, 0], "balanced")
