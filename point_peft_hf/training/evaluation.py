"""A trained model on labelled data: measures, tables by class, and every cloud with what was predicted."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from ..io.card import wilson_interval
from ..models.segmentation import IGNORE_INDEX
from ..scenes import SceneSegmentationTask
from ..scenes.metrics import SceneMetrics
from .batches import evaluation_loader
from .segmentation import SegmentationTask
from .tasks import Task

NUM_BINS = 15


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        summary: Measures of the whole, from 0 to 1, and "count", the number of clouds or scenes.
        classes: A row for each class or part.
        predictions: A row for each cloud or scene, the worst first.
        class_names: Names of the classes or parts.
        confusion: Counts of clouds (of points, for parts and scenes), of shape `(num_classes, num_classes)`; rows are
            the true classes, columns the predicted ones.
        calibration: For classification, a row for each bin of the probability of the predicted class.
    """

    summary: dict[str, float]
    classes: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    class_names: list[str]
    confusion: np.ndarray
    calibration: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: str | Path) -> list[Path]:
        """Write summary.json and the tables as .csv.

        Args:
            folder: Where to; it is created if need be.

        Returns:
            The files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        summary = folder / "summary.json"
        summary.write_text(json.dumps(self.summary, indent=1) + "\n")
        named = [
            {"true class": name, **dict(zip(self.class_names, row.tolist(), strict=True))}
            for name, row in zip(self.class_names, self.confusion, strict=True)
        ]
        tables = {"classes": self.classes, "predictions": self.predictions, "confusion": named}
        tables["calibration"] = self.calibration
        return [summary, *(write_table(folder / f"{name}.csv", rows) for name, rows in tables.items() if rows)]


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows of the same columns as .csv.

    Args:
        path: The file.
        rows: The rows, at least one.

    Returns:
        The file.
    """
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{cell:.6g}" if isinstance(cell, float) else cell for name, cell in row.items()})
    return path


@torch.no_grad()
def evaluate_model(
    model: nn.Module, task: Task, datasets: Iterable[Dataset], processor: Any, batch_size: int = 16
) -> Evaluation:
    """Measure a model on splits of a task.

    Args:
        model: The model, in evaluation mode.
        task: The task, which says how outputs are judged.
        datasets: The clouds or scenes.
        processor: Prepares them.
        batch_size: Clouds or scenes at a time.

    Returns:
        Measures and tables.
    """
    device = next(model.parameters()).device
    collator = task.evaluation_collator(processor)
    judge = _judge_of(task)
    for dataset in datasets:
        for batch in evaluation_loader(dataset, collator, batch_size=batch_size):
            batch = {name: value.to(device) for name, value in batch.items()}
            names = dataset.names_of(batch["sample_ids"].tolist())
            judge.add(names, *(rows.cpu() for rows in task.rows(model(**task.inputs(batch)), batch)))
    return judge.finish()


def evaluate_rows(task: Task, dataset: Dataset, rows: Sequence[torch.Tensor]) -> Evaluation:
    """Measure what has been predicted already.

    Args:
        task: The task.
        dataset: The clouds or scenes.
        rows: What `task.rows` gives, of all of them, in their order.

    Returns:
        Measures and tables.
    """
    judge = _judge_of(task)
    judge.add(dataset.names_of(dataset.sample_ids), *rows)
    return judge.finish()


def judge_classes(
    class_names: Sequence[str], names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray
) -> Evaluation:
    """Measure predicted classes.

    Args:
        class_names: Names of the classes.
        names: Names of the clouds.
        labels: Their true classes, of shape `(num_clouds,)`.
        probabilities: Predicted ones of shape `(num_clouds, num_classes)`.

    Returns:
        "accuracy" with its 95 % interval (Wilson), "mean_class_accuracy" over the classes that occur, and
        "calibration_error", the expected calibration error over 15 bins (Guo et al. 2017, arXiv 1706.04599); tables.
    """
    class_names, number = list(class_names), len(class_names)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    confusion = np.bincount(labels * number + predicted, minlength=number**2).reshape(number, number)
    right, true, chosen = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall, precision = right / true, right / chosen
        f1 = 2 * right / (true + chosen)
    classes = [
        {"class": name, "clouds": int(count), "accuracy": float(r), "precision": float(p), "f1": float(f)}
        for name, count, r, p, f in zip(class_names, true, recall, precision, f1, strict=True)
    ]
    of_truth = probabilities[np.arange(len(labels)), labels]
    predictions = [
        {
            "file": names[index],
            "true": class_names[labels[index]],
            "predicted": class_names[predicted[index]],
            "probability": float(confidence[index]),
            "probability of true": float(of_truth[index]),
        }
        for index in np.argsort(of_truth, kind="stable")
    ]
    hits = predicted == labels
    calibration = _calibration(confidence, hits)
    lower, upper = wilson_interval(float(hits.mean()), len(hits))
    summary = {
        "count": len(labels),
        "accuracy": float(hits.mean()),
        "accuracy_lower": lower,
        "accuracy_upper": upper,
        "mean_class_accuracy": float(np.nanmean(recall)),
        "calibration_error": sum(row["clouds"] * abs(row["accuracy"] - row["confidence"]) for row in calibration)
        / len(labels),
    }
    return Evaluation(summary, classes, predictions, class_names, confusion, calibration)


def _calibration(confidence: np.ndarray, hits: np.ndarray) -> list[dict[str, Any]]:
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    return [
        {
            "from": number / NUM_BINS,
            "to": (number + 1) / NUM_BINS,
            "clouds": int((bins == number).sum()),
            "confidence": float(confidence[bins == number].mean()),
            "accuracy": float(hits[bins == number].mean()),
        }
        for number in np.unique(bins).tolist()
    ]


def _judge_of(task: Task) -> _Classes | _Points:
    return {SegmentationTask: _Parts, SceneSegmentationTask: _Scenes}.get(type(task), _Classes)(task)


class _Classes:
    """Collects the probabilities of clouds."""

    def __init__(self, task: Task):
        self.task = task
        self.names: list[str] = []
        self.labels: list[np.ndarray] = []
        self.probabilities: list[np.ndarray] = []

    def add(self, names: list[str], logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.names += names
        self.labels.append(labels.numpy())
        self.probabilities.append(logits.float().softmax(dim=-1).numpy())

    def finish(self) -> Evaluation:
        labels, probabilities = np.concatenate(self.labels), np.concatenate(self.probabilities)
        return judge_classes(self.task.class_names, self.names, labels, probabilities)


class _Points:
    """Counts the points of parts and scenes by their true and predicted classes."""

    def __init__(self, task: Task):
        self.task, self.metrics = task, SceneMetrics(task.class_names)
        self.predictions: list[dict[str, Any]] = []

    def summary(self) -> dict[str, float]:
        return self.metrics.compute()

    def finish(self) -> Evaluation:
        classes = [{"class": name, **row} for name, row in self.metrics.per_class().items()]
        self.predictions.sort(key=lambda row: (math.isnan(row["miou"]), row["miou"]))
        summary = {"count": len(self.predictions), **self.summary()}
        confusion = self.metrics.confusion.numpy()
        return Evaluation(summary, classes, self.predictions, list(self.task.class_names), confusion)


class _Parts(_Points):
    """Also measures each object as the task does."""

    def __init__(self, task: Task):
        super().__init__(task)
        self.objects = task.metrics()

    def add(self, names: list[str], predicted: torch.Tensor, labels: torch.Tensor, categories: torch.Tensor) -> None:
        self.metrics.update(predicted.flatten(), labels.flatten())
        self.objects.update(predicted, labels, categories)
        for index, name in enumerate(names):
            here, labelled = slice(index, index + 1), labels[index] != IGNORE_INDEX
            one = self.task.metrics()
            one.update(predicted[here], labels[here], categories[here])
            measured = one.compute() if bool(labelled.any()) else {"instance_miou": math.nan, "accuracy": math.nan}
            row = {"file": name, "category": self.task.category_names[int(categories[index])]}
            row |= {"miou": measured["instance_miou"], "accuracy": measured["accuracy"], "points": int(labelled.sum())}
            self.predictions.append(row)

    def summary(self) -> dict[str, float]:
        return self.objects.compute()


class _Scenes(_Points):
    """Measures each scene by the classes that occur in it."""

    def add(self, names: list[str], confusions: torch.Tensor, counts: torch.Tensor) -> None:
        self.metrics.confusion += confusions.sum(dim=0)
        for name, confusion, count in zip(names, confusions, counts.tolist(), strict=True):
            one = SceneMetrics(self.task.class_names)
            one.confusion += confusion
            measured = one.compute() if count else {"miou": math.nan, "accuracy": math.nan}
            row = {"file": name, "miou": measured["miou"], "accuracy": measured["accuracy"], "points": count}
            self.predictions.append(row)
