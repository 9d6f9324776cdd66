"""Part segmentation as a task: its clouds, and how a model is judged on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..data import PointCloudDataset, load_dataset
from ..models import AutoModelForPointCloudSegmentation
from ..models.segmentation import IGNORE_INDEX, leave_out_other_parts
from .task import PROCEDURAL, ObjectTask, cut_splits


def predict_parts(
    logits: torch.Tensor, category_ids: torch.Tensor | None, category_parts: Sequence[Sequence[int]] | None
) -> torch.Tensor:
    """Choose the part of each point among those of its object's category.

    Args:
        logits: Part scores of shape `(batch_size, num_points, num_labels)`.
        category_ids: Category of each object, of shape `(batch_size,)`; `None` to choose among all parts.
        category_parts: The parts of each category; `None` likewise.

    Returns:
        Parts of shape `(batch_size, num_points)`.
    """
    return leave_out_other_parts(logits, category_ids, category_parts).argmax(dim=-1)


class SegmentationMetrics:
    """Mean intersection over union as on ShapeNetPart, and the accuracy of points, counted over batches.

    The IoU of an object is the mean over the parts that its category can have; a part that it neither has nor is said
    to have counts 1. Points without a label count nowhere.

    Args:
        category_parts: The parts of each category.
    """

    def __init__(self, category_parts: Sequence[Sequence[int]]):
        self.category_parts = [list(parts) for parts in category_parts]
        self.ious: list[list[float]] = [[] for _ in category_parts]
        self.right = self.points = 0

    def update(self, predictions: torch.Tensor, labels: torch.Tensor, category_ids: torch.Tensor) -> None:
        """Count a batch.

        Args:
            predictions: Predicted parts of shape `(batch_size, num_points)`.
            labels: True parts of shape `(batch_size, num_points)`, -100 where there is none.
            category_ids: Categories of shape `(batch_size,)`.
        """
        predictions, labels = predictions.cpu(), labels.cpu()
        labelled = labels != IGNORE_INDEX
        self.right += int(((predictions == labels) & labelled).sum())
        self.points += int(labelled.sum())
        for index, category in enumerate(category_ids.tolist()):
            if not labelled[index].any():
                continue
            parts = torch.tensor(self.category_parts[category])[:, None]
            predicted = (predictions[index] == parts) & labelled[index]
            true = labels[index] == parts
            union = (predicted | true).sum(dim=1)
            iou = (predicted & true).sum(dim=1) / union.clamp(min=1)
            self.ious[category].append(float(iou.where(union > 0, 1.0).mean()))

    def compute(self) -> dict[str, float]:
        """Return the measures, from 0 to 1.

        "instance_miou" is the mean over all objects, "category_miou" over the categories that occurred, and "accuracy"
        over the points.
        """
        occurred = [sum(ious) / len(ious) for ious in self.ious if ious]
        count = sum(map(len, self.ious))
        return {
            "instance_miou": sum(map(sum, self.ious)) / max(count, 1),
            "category_miou": sum(occurred) / max(len(occurred), 1),
            "accuracy": self.right / max(self.points, 1),
        }


@dataclass
class SegmentationTask(ObjectTask):
    """A part segmentation task; see [`~point_peft_hf.training.ClassificationTask`].

    Attributes:
        class_names: Names of the parts, which are the labels of the model.
        category_names: Names of the categories of the objects.
        category_parts: The parts that each category can have.
        train: Training clouds.
        validation: Clouds that choose the epoch; never trained on.
        test: Clouds that are looked at once, at the end.
    """

    class_names: list[str]
    category_names: list[str]
    category_parts: list[list[int]]
    train: PointCloudDataset
    validation: PointCloudDataset
    test: PointCloudDataset

    auto_class = AutoModelForPointCloudSegmentation
    score = "instance_miou"
    is_segmentation = True
    class_noun = "parts"

    @property
    def model_fields(self) -> dict[str, Any]:
        """Fields of the model's configuration that follow from the task. A single category needs no field."""
        num_categories = len(self.category_names)
        return {
            "num_categories": num_categories if num_categories > 1 else 0,
            "category_names": self.category_names,
            "category_parts": self.category_parts,
        }

    def metrics(self) -> SegmentationMetrics:
        """Measures to be counted over a split; the epoch with the highest `score` is chosen."""
        return SegmentationMetrics(self.category_parts)

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What a model is given of a batch to predict."""
        return {name: batch[name] for name in ("points", "category_ids")}

    def judge(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What the metrics count of a batch: predicted and true parts `(batch_size, num_points)`, and categories."""
        categories = batch["category_ids"]
        predictions = predict_parts(outputs.logits, categories, self.category_parts)
        return predictions, batch["labels"], categories


def load_segmentation_task(
    data: str,
    *,
    validation_fraction: float = 0.2,
    max_train_clouds: int | None = None,
    max_test_clouds: int | None = None,
    skip_bad_files: bool = False,
    drop_invalid: bool = False,
    layout: str | None = None,
    seed: int = 0,
) -> SegmentationTask:
    """Load a part segmentation task, and cut a validation split from its training split where it has none.

    Args:
        data: A folder in a layout of ShapeNetPart, or of clouds with a label for each point.
        validation_fraction: As in [`load_task`].
        max_train_clouds: As in [`load_task`].
        max_test_clouds: As in [`load_task`].
        skip_bad_files: As in [`load_task`].
        drop_invalid: As in [`load_task`].
        layout: As in [`load_task`].
        seed: As in [`load_task`].

    Returns:
        The task.

    Raises:
        ValueError: If the data cannot be loaded or are too few.
    """
    if data == PROCEDURAL:
        raise ValueError(
            "The procedural shapes have no parts. For part segmentation pass --data with a folder: ShapeNetPart, or "
            "clouds with a label for each point (a file of the same name ending with .seg next to each, a vertex "
            "property 'label' in .ply, or a fourth column)."
        )
    splits = load_dataset(data, layout, parts=True, skip_bad_files=skip_bad_files, drop_invalid=drop_invalid)
    train, validation, test = cut_splits(
        splits,
        data,
        validation_fraction=validation_fraction,
        max_train_clouds=max_train_clouds,
        max_test_clouds=max_test_clouds,
        seed=seed,
    )
    return SegmentationTask(train.part_names, train.class_names, train.class_parts, train, validation, test)
