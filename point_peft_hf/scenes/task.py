"""Semantic segmentation of scenes as a task: its scenes, and how a model is judged on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.part_files import UNLABELLED
from ..data.rooms import load_procedural_rooms
from ..data.scenes import (
    MAX_VOXELS,
    SceneAugmentation,
    SceneCollator,
    SceneDataset,
    SceneProcessor,
    hold_out,
    load_scenes,
)
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
    processor_class = SceneProcessor
    score = "miou"
    is_segmentation = True
    batch_size = 4
    noun = "scenes"
    only_for_metrics = ("inverse", "point_labels")
    layout = None

    def training_collator(self, processor: SceneProcessor, augmentation: str, sampler: Any) -> SceneCollator:
        """What makes batches to train on; the augmentation is "scene" or "none"."""
        return SceneCollator(processor, SceneAugmentation() if augmentation == "scene" else None, epoch=sampler)

    def evaluation_collator(self, processor: SceneProcessor) -> SceneCollator:
        """What makes batches of scenes as they are, judged at all their points."""
        return SceneCollator(processor, all_points=True)

    def fixed_splits(self, processor: SceneProcessor, augmentation: str) -> tuple[str, ...]:
        """Of which splits adapters may keep values: they compute none of scenes."""
        return ()

    def describe(self, processor: SceneProcessor) -> str:
        """Say what the scenes are."""
        counts = [len(split) for split in (self.train, self.validation, self.test)]
        return (
            f"{len(self.class_names)} classes, {counts[0]} training, {counts[1]} validation and {counts[2]} test "
            f"scenes in voxels of {processor.voxel_size:g} m, z up"
        )

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

    def rows(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What is gathered of a batch to measure a split.

        Scenes differ in size, so that points could not be gathered: each scene gives its confusion matrix, of shape
        `(batch_size, num_classes, num_classes)`, and its number of labelled points.
        """
        predictions, labels = self.judge(outputs, batch)
        scenes = batch["batch_index"][batch["inverse"]] if "inverse" in batch else batch["batch_index"]
        number, count = len(self.class_names), int(batch["batch_index"].max()) + 1
        labelled = labels != UNLABELLED
        index = (scenes[labelled] * number + labels[labelled]) * number + predictions[labelled]
        confusions = torch.bincount(index, minlength=count * number**2).view(count, number, number)
        return confusions, confusions.sum(dim=(1, 2))

    def measure(self, confusions: torch.Tensor, counts: torch.Tensor) -> dict[str, float]:
        """The measures of a split from the confusion matrices of its scenes."""
        metrics = self.metrics()
        metrics.confusion += confusions.sum(dim=0).cpu()
        return metrics.compute()

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
