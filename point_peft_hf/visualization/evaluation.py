"""What a classifier makes of many clouds: their features before and after tuning, and its predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


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
    has_adapter = hasattr(model, "get_base_model")
    backbone = model.get_base_model() if has_adapter else model
    device = next(model.parameters()).device
    before, after, labels, predictions = [], [], [], []

    def keep_input(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        after.append(args[0].float().cpu())

    was_training = model.training
    model.eval()
    handle = backbone.classifier.register_forward_pre_hook(keep_input)
    try:
        for batch in batches:
            points = batch["points"].to(device)
            if has_adapter:
                before.append(backbone.extract_prior_features(points).float().cpu())
            predictions.append(model(points=points).logits.argmax(dim=-1).cpu())
            labels.append(batch["labels"])
    finally:
        handle.remove()
        model.train(was_training)
    if not labels:
        raise ValueError("There are no clouds to classify: check the data set and `max_clouds`.")
    features = {"before tuning": before} if has_adapter else {}
    features = {title: torch.cat(rows).numpy() for title, rows in {**features, "after tuning": after}.items()}
    return ClassifiedClouds(
        features, torch.cat(labels).numpy(), torch.cat(predictions).numpy(), backbone.config.num_labels
    )
