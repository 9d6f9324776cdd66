"""What a model is fine-tuned on: the data set of a name or a folder, cut into training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data import (
    PointCloudCollator,
    PointCloudDataset,
    PointCloudProcessor,
    ProceduralShapes,
    get_augmentation,
    load_dataset,
    stratified_split,
)
from ..models import AutoModelForPointCloudClassification
from .batches import EpochSampler, TrainingCollator

PROCEDURAL = "procedural"
# Test clouds of a class of the procedural task, whatever the number of training clouds.
PROCEDURAL_TEST_CLOUDS = 50


class ObjectTask:
    """What tasks of single objects share; the dataclasses below hold the clouds."""

    class_names: list[str]
    train: PointCloudDataset
    validation: PointCloudDataset
    test: PointCloudDataset

    processor_class = PointCloudProcessor
    is_segmentation = False
    batch_size = 16
    noun = "clouds"
    class_noun = "classes"
    # What the measures need of a batch and the model does not take.
    only_for_metrics: tuple[str, ...] = ()

    @property
    def layout(self) -> str | None:
        """The layout of the folder that the clouds come from, if they come from one."""
        return self.train.layout

    def training_collator(
        self, processor: PointCloudProcessor, augmentation: str, sampler: EpochSampler
    ) -> TrainingCollator:
        """What makes batches to train on."""
        return TrainingCollator(processor, get_augmentation(augmentation), sampler, self.is_segmentation)

    def evaluation_collator(self, processor: PointCloudProcessor) -> PointCloudCollator:
        """What makes batches of clouds as they are."""
        return PointCloudCollator(processor, segmentation=self.is_segmentation)

    def fixed_splits(self, processor: PointCloudProcessor, augmentation: str) -> tuple[str, ...]:
        """Of which splits adapters may keep values, as a cloud has the same points in every epoch."""
        is_fixed = augmentation == "none" and processor.sampling != "random"
        return ("eval", "train") if is_fixed else ("eval",)

    def describe(self, processor: PointCloudProcessor) -> str:
        """Say how many classes and clouds there are."""
        layout = f"{self.layout}, " if self.layout else ""
        train, validation, test = (len(split) for split in (self.train, self.validation, self.test))
        return (
            f"{layout}{len(self.class_names)} {self.class_noun}, {train} training, {validation} validation and {test} "
            f"test clouds of {processor.num_points} points, {processor.up_axis} up"
        )

    def rows(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What is gathered of a batch to measure a split: tensors with a row for each cloud."""
        return self.judge(outputs, batch)

    def measure(self, *rows: torch.Tensor) -> dict[str, float]:
        """The measures of a split from the rows of all its clouds."""
        metrics = self.metrics()
        metrics.update(*rows)
        return metrics.compute()


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


@dataclass
class ClassificationTask(ObjectTask):
    """A classification task: its clouds, and how outputs of a model are judged on them.

    Attributes:
        class_names: Names of the classes.
        train: Training clouds.
        validation: Clouds that choose the epoch; never trained on. If there are none, the last epoch is taken.
        test: Clouds that are looked at once, at the end. There may be none.
    """

    class_names: list[str]
    train: PointCloudDataset
    validation: PointCloudDataset
    test: PointCloudDataset

    auto_class = AutoModelForPointCloudClassification
    score = "accuracy"

    @property
    def model_fields(self) -> dict[str, Any]:
        """Fields of the model's configuration that follow from the task, besides the names of its classes."""
        return {}

    def metrics(self) -> ClassificationMetrics:
        """Measures to be counted over a split; the epoch with the highest `score` is chosen."""
        return ClassificationMetrics(len(self.class_names))

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What a model is given of a batch to predict."""
        return {"points": batch["points"]}

    def judge(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What the metrics count of a batch: predicted and true classes of shape `(batch_size,)`."""
        return outputs.logits.argmax(dim=-1), batch["labels"]

    def rows(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What is gathered of a batch: logits `(batch_size, num_classes)` and true classes `(batch_size,)`."""
        return outputs.logits, batch["labels"]

    def measure(self, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """The measures of a split from the logits and classes of all its clouds."""
        return super().measure(logits.argmax(dim=-1), labels)


def load_task(
    data: str = PROCEDURAL,
    *,
    num_points: int = 1024,
    clouds_per_class: int = 50,
    corruption: str = "scan",
    validation_fraction: float = 0.2,
    max_train_clouds: int | None = None,
    max_test_clouds: int | None = None,
    skip_bad_files: bool = False,
    drop_invalid: bool = False,
    layout: str | None = None,
    seed: int = 0,
) -> ClassificationTask:
    """Load a task, and cut a validation split from its training split where it has none.

    The cut depends on the seed of the split alone, so that runs with other seeds of training are compared on the same
    clouds.

    Args:
        data: "procedural", or a folder in a layout that [`~point_peft_hf.data.load_dataset`] knows.
        num_points: Points of a cloud.
        clouds_per_class: Procedural shapes: training clouds of a class, validation included.
        corruption: Procedural shapes: how the clouds are corrupted.
        validation_fraction: Share of the training clouds that becomes the validation split.
        max_train_clouds: Use about this many training clouds at most (before the cut), stratified; a class keeps one
            or more as long as there are not more classes than that.
        max_test_clouds: As many test clouds at most, in the same way.
        skip_bad_files: Leave out files that cannot be read, with a warning that names them, instead of failing.
        drop_invalid: Leave out points with NaN or infinite coordinates instead of refusing their file.
        layout: Name of the folder's layout; by default it is found by looking.
        seed: Seed of the validation split, of the clouds that limits leave, and of the procedural shapes. A test split
            that a folder does not have is cut in the same way whatever the seed: what was a test cloud stays one.

    Returns:
        The task.

    Raises:
        ValueError: If the data cannot be loaded, are too few, or are all of one class.
    """
    if data == PROCEDURAL:
        options: dict[str, Any] = {"num_points": num_points, "seed": seed, "corruption": corruption}
        splits = {
            "train": _in_memory(ProceduralShapes(clouds_per_class=clouds_per_class, split="train", **options)),
            "test": _in_memory(ProceduralShapes(clouds_per_class=PROCEDURAL_TEST_CLOUDS, split="test", **options)),
        }
    else:
        splits = load_dataset(data, layout, skip_bad_files=skip_bad_files, drop_invalid=drop_invalid)
    class_names = list(splits["train"].class_names)
    if len(class_names) < 2:
        # One logit would be right every time, whatever was learnt.
        raise ValueError(
            f"{data} has the class {class_names[0]!r} alone; a classifier needs 2 or more. Expected is a folder for "
            f"each class, or train/ and test/ with those in them: if {class_names[0]!r} holds the folders of the "
            "classes, pass it as --data."
        )
    train, validation, test = cut_splits(
        splits,
        data,
        validation_fraction=validation_fraction,
        max_train_clouds=max_train_clouds,
        max_test_clouds=max_test_clouds,
        seed=seed,
    )
    return ClassificationTask(class_names, train, validation, test)


def cut_splits(
    splits: Mapping[str, PointCloudDataset],
    data: str,
    *,
    validation_fraction: float,
    max_train_clouds: int | None,
    max_test_clouds: int | None,
    seed: int,
) -> tuple[PointCloudDataset, PointCloudDataset, PointCloudDataset]:
    """Limit the splits of a data set, and cut a validation split from the training split where it has none."""
    train = _limit(splits["train"], max_train_clouds, seed)
    test = _limit(splits["test"], max_test_clouds, seed)
    if "validation" in splits:
        validation = splits["validation"]
    else:
        kept, held_out = stratified_split(train.labels, validation_fraction, seed)
        train, validation = train.select(kept), train.select(held_out)
    for name, split in (("training", train), ("validation", validation), ("test", test)):
        if len(split) == 0:
            raise ValueError(
                f"The {name} split of {data} is empty. Every class needs at least 2 training clouds (one is held out "
                "for validation) and the test split at least one; or pass another --validation_fraction."
            )
    return train, validation, test


def _in_memory(shapes: ProceduralShapes) -> PointCloudDataset:
    clouds = np.stack([shapes[index]["points"].numpy() for index in range(len(shapes))])
    return PointCloudDataset(clouds, shapes.labels, shapes.class_names)


def _limit(dataset: PointCloudDataset, maximum: int | None, seed: int) -> PointCloudDataset:
    if maximum is None or maximum >= len(dataset):
        return dataset
    labels = dataset.labels
    _, kept = stratified_split(labels, maximum / len(dataset), seed)
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[kept] = True
    # The split leaves out classes of one cloud: they take the place of clouds of the classes that have most.
    for label in np.setdiff1d(labels, labels[kept]):
        if chosen.sum() >= maximum:
            counts = np.bincount(labels[chosen])
            if counts.max() < 2:
                break
            chosen[np.flatnonzero(chosen & (labels == counts.argmax()))[-1]] = False
        chosen[labels == label] = True
    return dataset.select(np.flatnonzero(chosen))
