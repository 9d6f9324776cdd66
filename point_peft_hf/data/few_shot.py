"""Few-shot classification folds of a data set."""

from __future__ import annotations

from .dataset import PointCloudDataset
from .splits import few_shot_indices


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
