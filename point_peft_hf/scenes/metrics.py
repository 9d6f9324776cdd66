"""Measures of semantic segmentation, and weights of its classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..data.part_files import UNLABELLED

CLASS_WEIGHTS = ("none", "balanced", "inverse_sqrt")


class SceneMetrics:
    """Intersection over union and accuracy of classes, counted over the points (or voxels) of all batches.

    Points without a label count nowhere.

    Args:
        class_names: Names of the classes.
    """

    def __init__(self, class_names: Sequence[str]):
        self.class_names = list(class_names)
        # Rows are the true classes, columns the predicted ones.
        self.confusion = torch.zeros(len(self.class_names), len(self.class_names), dtype=torch.long)

    def update(self, predictions: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch.

        Args:
            predictions: Predicted classes of shape `(num_points,)`.
            labels: True classes of shape `(num_points,)`, -100 where there is none.
        """
        labelled = labels != UNLABELLED
        number = len(self.class_names)
        index = labels[labelled].long() * number + predictions[labelled].long()
        self.confusion += torch.bincount(index.cpu(), minlength=number**2).view(number, number)

    def compute(self) -> dict[str, float]:
        """Return the measures, from 0 to 1.

        "miou" is the mean of the IoU over the classes that occur among the labels or the predictions, "mean_accuracy"
        the mean share of right points over the classes that occur among the labels, and "accuracy" the share over all
        points.
        """
        right, true, union = self._counts()
        iou, recall = right / union.clamp(min=1), right / true.clamp(min=1)
        return {
            "miou": float(iou[union > 0].mean()) if (union > 0).any() else 0.0,
            "mean_accuracy": float(recall[true > 0].mean()) if (true > 0).any() else 0.0,
            "accuracy": float(right.sum() / true.sum().clamp(min=1)),
        }

    def per_class(self) -> dict[str, dict[str, float]]:
        """Return "iou", "accuracy" and "points" of each class by its name; NaN where a class does not occur."""
        right, true, union = self._counts()
        return {
            name: {
                "iou": float(right[index] / union[index]) if union[index] else float("nan"),
                "accuracy": float(right[index] / true[index]) if true[index] else float("nan"),
                "points": int(true[index]),
            }
            for index, name in enumerate(self.class_names)
        }

    def _counts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give right points, true points and the union with the predicted ones, of each class; float64."""
        confusion = self.confusion.double()
        right, true = confusion.diagonal(), confusion.sum(dim=1)
        return right, true, true + confusion.sum(dim=0) - right


def class_weights(counts: Sequence[int] | np.ndarray, mode: str) -> list[float] | None:
    """Weigh the classes by how often they occur, for the loss.

    Args:
        counts: Points of each class in the training scenes.
        mode: `"none"`; `"balanced"`, one over the share; or `"inverse_sqrt"`, one over its square root.

    Returns:
        Weights with mean 1 over the classes that occur, 1 for others; `None` for `"none"`.

    Raises:
        ValueError: If there is no such mode, or no class occurs.
    """
    if mode not in CLASS_WEIGHTS:
        raise ValueError(f"class weights are one of {', '.join(CLASS_WEIGHTS)}, got {mode!r}")
    if mode == "none":
        return None
    counts = np.asarray(counts, dtype=np.float64)
    occurs = counts > 0
    if not occurs.any():
        raise ValueError("no class occurs in the training scenes, so that classes cannot be weighed")
    weights = np.ones(len(counts))
    weights[occurs] = counts[occurs] ** (-1.0 if mode == "balanced" else -0.5)
    weights[occurs] /= weights[occurs].mean()
    return weights.tolist()
