"""What a classifier makes of many clouds: their features before and after tuning, and its predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .twin import make_twin


@dataclass
class ClassifiedClouds:
    """What a classifier makes of clouds.

    Attributes:
        features: By title, features of shape `(num_clouds, num_features)`; for
            [`~point_peft_hf.visualization.plot_features`].
        labels: True classes of shape `(num_clouds,)`.
        predictions: Predicted classes of shape `(num_clouds,)`.
        num_labels: Number of classes.
    """

    features: dict[str, np.ndarray]
    labels: np.ndarray
    predictions: np.ndarray
    num_labels: int

    @property
    def confusion(self) -> np.ndarray:
        """Counts of shape `(num_labels, num_labels)`; rows are the true classes, columns the predicted ones."""
        counts = np.zeros((self.num_labels, self.num_labels), dtype=np.int64)
        np.add.at(counts, (self.labels, self.predictions), 1)
        return counts


@torch.no_grad()
def classify_clouds(model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]]) -> ClassifiedClouds:
    """Run a classifier on labelled clouds.

    Args:
        model: A classifier of this package. With adapters, the features before tuning are those of the frozen encoder
            without them; those after tuning are what the head gets.
        batches: Batches with "points" of shape `(batch_size, num_points, 3)` and "labels" of shape `(batch_size,)`.

    Returns:
        Features, labels and predictions.

    Raises:
        ValueError: If there are no batches.
    """
    # Nobody else's model changes its mode.
    twin = make_twin(model).eval()
    has_adapter = hasattr(twin, "get_base_model")
    backbone = twin.get_base_model() if has_adapter else twin
    device = next(model.parameters()).device
    before, after, labels, predictions = [], [], [], []
    for batch in batches:
        points = batch["points"].to(device)
        if has_adapter:
            before.append(backbone.frozen_features(points).float().cpu())
        pooled = backbone.base_model.encode(points).pooled
        after.append(pooled.float().cpu())
        predictions.append(backbone.classifier(pooled).argmax(dim=-1).cpu())
        labels.append(batch["labels"])
    if not labels:
        raise ValueError("There are no clouds to classify: check the data set and `max_clouds`.")
    features = {"before tuning": before} if has_adapter else {}
    features = {title: torch.cat(rows).numpy() for title, rows in {**features, "after tuning": after}.items()}
    return ClassifiedClouds(
        features, torch.cat(labels).numpy(), torch.cat(predictions).numpy(), backbone.config.num_labels
    )
