import pytest
import torch

from point_peft_hf.training import ClassificationMetrics


def test_accuracies_of_a_case_worked_out_by_hand():
    metrics = ClassificationMetrics(4)
    # Class 0: 2 of 3 right; class 1: 0 of 1; class 2: 2 of 2; class 3 does not occur.
    metrics.update(torch.tensor([0, 0, 2]), torch.tensor([0, 0, 0]))
    metrics.update(torch.tensor([3, 2, 2]), torch.tensor([1, 2, 2]))
    scores = metrics.compute()
    assert metrics.count == 6
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["mean_class_accuracy"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert metrics.confusion[0, 2] == 1
    assert metrics.confusion[1, 3] == 1


def test_nothing_counted_is_no_division_by_zero():
    assert ClassificationMetrics(3).compute() == {"accuracy": 0.0, "mean_class_accuracy": 0.0}
