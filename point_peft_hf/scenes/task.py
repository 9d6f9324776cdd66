"""Semantic segmentation of scenes as a task: its scenes, and how a model is judged on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.rooms import load_procedural_rooms
from ..data.scenes import MAX_VOXELS, SceneDataset, hold_out, load_scenes
from ..models import AutoModelForPointCloudSemanticSegmentation
from .metrics import SceneMetrics, class_weights

PROCEDURAL = "procedural"


@dataclass
class SceneSegmentationTask:
    """A task of segmentation of scenes; see [`~point_peft_hf.training.ClassificationTask`].

    Attributes:
        class_names: Names of the classes, which are the labels of the model.
        train: Training scenes.
        validation: Scenes that choose the epoch; never trained on.
        test: Scenes that are looked at once, at the end.
        weights: How the loss weighs the classes: `"none"`, `"balanced"` or `"inverse_sqrt"`.
    """

    class_names: list[str]
    train: SceneDataset
    validation: SceneDataset
    test: SceneDataset
    weights: str = "none"

    auto_class = AutoModelForPointCloudSemanticSegmentation
    score = "miou"
    is_segmentation = True

    @property
    def model_fields(self) -> dict[str, Any]:
        """Fields of the model's configuration that follow from the task.

        `label_values` are the numbers of the classes in the files, which predictions are written with.
        """
        weights = class_weights(self.train.class_counts, self.weights) if self.weights != "none" else None
        return {"label_values": self.train.label_values, "class_weights": weights}

    def metrics(self) -> SceneMetrics:
        """Measures to be counted over a split; the epoch with the highest `score` is chosen."""
        return SceneMetrics(self.class_names)

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What a model is given of a batch to predict."""
        return {name: batch[name] for name in ("coordinates", "grid_coordinates", "features", "batch_index")}

    def judge(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What the metrics count of a batch: predicted and true classes, of all points where the batch has them."""
        predictions = outputs.logits.argmax(dim=-1)
        if "inverse" in batch:
            return predictions[batch["inverse"]], batch["point_labels"]
        return predictions, batch["labels"]


def load_scene_task(
    data: str = PROCEDURAL,
    *,
    grid_size: float = 0.02,
    max_voxels: int = MAX_VOXELS,
    weights: str = "none",
    validation_fraction: float = 0.2,
    max_train_scenes: int | None = None,
    max_test_scenes: int | None = None,
    seed: int = 0,
    **options: Any,
) -> SceneSegmentationTask:
    """Load a task, and cut a validation split from its training split where it has none.

    Args:
        data: `"procedural"`, or a folder that [`~point_peft_hf.data.scenes.load_scenes`] loads.
        grid_size: Edge of a voxel in metres: `voxel_size` of the processor.
        max_voxels: Voxels of a scene at most; larger ones are cut into tiles.
        weights: As in [`SceneSegmentationTask`].
        validation_fraction: Share of the training scenes that becomes the validation split.
        max_train_scenes: Use so many training scenes or tiles at most (before the cut), drawn by the seed.
        max_test_scenes: As many test scenes or tiles at most, in the same way.
        seed: Seed of the validation split and of these draws.
        options: Further arguments of `load_scenes`.

    Returns:
        The task.

    Raises:
        ValueError: If the data cannot be loaded or are too few.
    """
    if data == PROCEDURAL:
        if options:
            raise ValueError(f"the procedural rooms take no {', '.join(sorted(options))}; these are for folders")
        splits = load_procedural_rooms(seed=seed)
    else:
        splits = load_scenes(data, grid_size=grid_size, max_voxels=max_voxels, **options)
    train, test = _limit(splits["train"], max_train_scenes, seed), _limit(splits["test"], max_test_scenes, seed)
    validation = splits.get("validation")
    if validation is None:
        train, validation = hold_out(train, validation_fraction, seed, f"{data}: the validation split")
    task = SceneSegmentationTask(list(train.class_names), train, validation, test, weights)
    class_weights([1], weights)  # refuses an unknown mode now, not when the model is made
    return task


def _limit(dataset: SceneDataset, maximum: int | None, seed: int) -> SceneDataset:
    if maximum is None or maximum >= len(dataset):
        return dataset
    if maximum < 1:
        raise ValueError(f"a limit of scenes must be at least 1, got {maximum}")
    chosen = hold_out(dataset, maximum / len(dataset), seed, "the limit of scenes")[1]
    return chosen.select(np.arange(min(len(chosen), maximum)))
