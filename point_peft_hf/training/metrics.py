"""Measures of classification."""

from __future__ import annotations

import torch


class ClassificationMetrics:
    """Overall and mean-class accuracy, counted over batches.

    Args:
        num_labels: Number of classes.
    """

    def __init__(self, num_labels: int):
        self.num_labels = num_labels
        # Rows are the true classes, columns the predicted ones.
        self.confusion = torch.zeros(num_labels, num_labels, dtype=torch.long)

    def update(self, predictions: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch.

        Args:
            predictions: Predicted classes of shape `(batch_size,)`.
            labels: True classes of shape `(batch_size,)`.
        """
        index = labels.flatten().cpu().long() * self.num_labels + predictions.flatten().cpu().long()
        self.confusion += torch.bincount(index, minlength=self.num_labels**2).view_as(self.confusion)

    @property
    def count(self) -> int:
        """Number of clouds counted."""
        return int(self.confusion.sum())

    def compute(self) -> dict[str, float]:
        """Return "accuracy" (overall) and "mean_class_accuracy" (over the classes that occurred), from 0 to 1."""
        totals, right = self.confusion.sum(dim=1), self.confusion.diagonal()
        occurred = totals > 0
        return {
            "accuracy": float(right.sum() / totals.sum().clamp(min=1)),
            "mean_class_accuracy": float((right[occurred] / totals[occurred]).mean()) if occurred.any() else 0.0,
        }
