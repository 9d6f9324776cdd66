"""Few-shot classification folds of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np

from .dataset import PointCloudDataset
from .splits import few_shot_indices


class FewShotFold(NamedTuple):
    """A fold of few-shot classification as indices.

    Args:
        classes: The classes drawn, ascending, of shape `(way,)`.
        train: Indices of the clouds to learn from, of shape `(way * shot,)`.
        test: Indices of the clouds to test on, of shape `(way * query,)`.
    """

    classes: np.ndarray
    train: np.ndarray
    test: np.ndarray


@overload
def few_shot_fold(
    dataset_or_labels: PointCloudDataset, way: int, shot: int, query: int = 20, fold: int = 0, seed: int = 0
) -> dict[str, PointCloudDataset]: ...
@overload
def few_shot_fold(
    dataset_or_labels: Sequence[int] | np.ndarray, way: int, shot: int, query: int = 20, fold: int = 0, seed: int = 0
) -> FewShotFold: ...
def few_shot_fold(dataset_or_labels, way, shot, query=20, fold=0, seed=0):
    """Draw a fold of few-shot classification, the same one for the same arguments.

    The protocol of the papers: `way` 5 or 10, `shot` 10 or 20, `query` 20, mean and standard deviation over the folds
    0 to 9.

    Args:
        dataset_or_labels: A data set, or the class of each cloud, integers of shape `(num_clouds,)`.
        way: Number of classes.
        shot: Clouds of each class to learn from.
        query: Clouds of each class to test on.
        fold: Number of the fold.
        seed: Seed of all the folds.

    Returns:
        For a data set: the data sets `"train"` and `"test"`, whose classes are numbered 0 to `way - 1`. For labels: a
        `FewShotFold` of indices, whose labels are still those of the whole.

    Raises:
        PointCloudError: If there are not enough classes with enough clouds.
    """
    if not isinstance(dataset_or_labels, PointCloudDataset):
        return FewShotFold(*few_shot_indices(dataset_or_labels, way, shot, query, fold, seed))
    classes, train, test = few_shot_indices(dataset_or_labels.labels, way, shot, query, fold, seed)
    return {
        "train": dataset_or_labels.select(train).keep_classes(classes),
        "test": dataset_or_labels.select(test).keep_classes(classes),
    }
