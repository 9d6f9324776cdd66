"""Splits of a data set: stratified, and the folds of few-shot classification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .dataset import PointCloudDataset
from .errors import PointCloudError, as_integers


def stratified_split(labels: Sequence[int] | np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split a data set in two, class by class.

    Args:
        labels: Class of each cloud, integers of shape `(num_clouds,)`.
        fraction: Share of each class in the second part, between 0 and 1. Every class of two clouds or more keeps at
            least one on either side; a class of one cloud stays in the first part.
        seed: Seed of the draw.

    Returns:
        Indices of the first and of the second part, int64, ascending.

    Raises:
        ValueError: If the fraction is not between 0 and 1, or the labels are not one integer a cloud.
    """
    labels = as_integers(labels, "labels", "num_clouds")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    generator = np.random.default_rng(seed)
    second = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        number = int(np.clip(round(fraction * len(members)), 1, len(members) - 1)) if len(members) > 1 else 0
        second.append(generator.permutation(members)[:number])
    chosen = np.zeros(len(labels), dtype=bool)
    if second:
        chosen[np.concatenate(second)] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def few_shot_indices(
    labels: Sequence[int] | np.ndarray, way: int, shot: int, query: int = 20, fold: int = 0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one fold of few-shot classification from labels of shape `(num_clouds,)`; arguments as `few_shot_fold`.

    Returns the classes of shape `(way,)`, ascending; the training indices of shape `(way * shot,)` and the test
    indices of shape `(way * query,)`, class by class, without a cloud in common.
    """
    labels = as_integers(labels, "labels", "num_clouds")
    for name, value, least in (("way", way, 2), ("shot", shot, 1), ("query", query, 1), ("fold", fold, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    classes, counts = np.unique(labels, return_counts=True)
    enough = classes[counts >= shot + query]
    if len(enough) < way:
        raise PointCloudError(
            f"{way}-way {shot}-shot with {query} test clouds a class needs {way} classes of {shot + query} clouds or "
            f"more; there are {len(enough)} such classes of {len(classes)}; take a smaller way, shot or query"
        )
    generator = np.random.default_rng([seed, fold])
    chosen = np.sort(generator.choice(enough, way, replace=False))
    drawn = np.stack([generator.permutation(np.flatnonzero(labels == label))[: shot + query] for label in chosen])
    return chosen.astype(np.int64), drawn[:, :shot].reshape(-1), drawn[:, shot:].reshape(-1)


def few_shot_fold(
    dataset: PointCloudDataset, way: int, shot: int, query: int = 20, fold: int = 0, seed: int = 0
) -> dict[str, PointCloudDataset]:
    """Draw a fold of few-shot classification, the same one for the same arguments.

    The protocol of the papers: `way` 5 or 10, `shot` 10 or 20, `query` 20, mean and standard deviation over the folds
    0 to 9.

    Args:
        dataset: The data set.
        way: Number of classes.
        shot: Clouds of each class to learn from.
        query: Clouds of each class to test on.
        fold: Number of the fold.
        seed: Seed of all the folds.

    Returns:
        The data sets `"train"` and `"test"`, whose classes are numbered 0 to `way - 1`.

    Raises:
        PointCloudError: If there are not enough classes with enough clouds.
    """
    classes, train, test = few_shot_indices(dataset.labels, way, shot, query, fold, seed)
    return {name: dataset.select(chosen).keep_classes(classes) for name, chosen in (("train", train), ("test", test))}
