"""The data set: clouds with a label each, from memory, from files or from the Hugging Face `datasets` library."""

from __future__ import annotations

import copy
import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import PointCloudError, as_integers, shorten
from .names import looks_like, printable
from .readers import to_float32
from .sources import FileClouds, check_extent, read_cloud

# A model has an output for each part: numbers above this are something else, such as colours or numbers of objects.
MAX_PARTS = 2048


class PointCloudDataset(torch.utils.data.Dataset):
    """Labelled clouds, as items `points` (float32, `(num_points, 3)`), `labels` (int) and `sample_ids` (int).

    With part labels, an item has `part_labels` as well (int64, `(num_points,)`). Coordinates keep their unit; those of
    float64 clouds far from the origin are shifted as `read_point_cloud` does. Clouds may differ in size: a batch is
    made of them by `PointCloudCollator` or `PointCloudProcessor`, or set `num_points` for items that all have the
    same.

    Args:
        clouds: Array of shape `(num_clouds, num_points, 3)`, or a list of arrays of shape `(num_points, 3)`, or a list
            of paths, read when they are asked for.
        labels: Class of each cloud, integers of shape `(num_clouds,)`.
        class_names: Name of each class.
        part_labels: Label of each point of each cloud, as `clouds`; None without parts.
        num_points: Points of an item: larger clouds are cut, smaller ones repeat their points. None leaves them whole.
        sampling: Which points stay when a cloud is cut: `"first"`, or `"random"` ones, always the same for a cloud.
        seed: Seed of that draw, and of points on the surface of meshes.
        sample_ids: Number of each cloud, kept by subsets; by default counted from 0.
        drop_invalid: Leave out points of files with NaN or infinite coordinates instead of refusing the file.
        class_parts: Parts that each class can have, for metrics; None without parts.
        part_names: Name of each part; by default made of the name of its class, where it belongs to only one.

    Raises:
        PointCloudError: If the numbers of clouds and labels differ, a label is out of range, or two classes have the
            same name but for upper and lower case.
    """

    def __init__(
        self,
        clouds: np.ndarray | Sequence,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        *,
        part_labels: np.ndarray | Sequence | None = None,
        num_points: int | None = None,
        sampling: str = "random",
        seed: int = 0,
        sample_ids: Sequence[int] | np.ndarray | None = None,
        class_parts: list[list[int]] | None = None,
        part_names: Sequence[str] | None = None,
        drop_invalid: bool = False,
    ):
        if sampling not in ("random", "first"):
            raise ValueError(f"sampling must be random or first, got {sampling!r}")
        if num_points is not None and num_points < 1:
            raise ValueError(f"num_points must be at least 1, got {num_points}")
        if len(clouds) and isinstance(clouds, list | tuple) and isinstance(clouds[0], str | os.PathLike):
            reader = partial(read_cloud, num_points=num_points, seed=seed, drop_invalid=drop_invalid)
            clouds = FileClouds([Path(path) for path in clouds], reader)
        if len(clouds) != len(labels):
            raise PointCloudError(
                f"there are {len(clouds)} clouds and {len(labels)} labels; one label a cloud is needed"
            )
        self.class_names = check_class_names(class_names)
        self.labels = check_labels(labels, len(self.class_names), "labels")
        self.sample_ids = np.arange(len(clouds)) if sample_ids is None else np.asarray(sample_ids, dtype=np.int64)
        self.num_points, self.sampling, self.seed = num_points, sampling, seed
        self.set_parts(class_parts, part_names)
        self.clouds, self._part_labels = clouds, part_labels
        self.layout: str | None = None  # of the folder that they come from
        self._places = np.arange(len(clouds))  # of the cloud of each item in `clouds`

    def set_parts(self, class_parts: list[list[int]] | None, part_names: Sequence[str] | None = None) -> None:
        """Say which parts the classes have.

        Args:
            class_parts: Parts that each class can have; None without parts.
            part_names: Name of each part, from 0 on.

        Raises:
            PointCloudError: If there are fewer names than parts, or numbers of parts that no object has.
        """
        highest = max((part for parts in class_parts or () for part in parts), default=0)
        if highest >= MAX_PARTS:
            raise PointCloudError(f"class_parts: {too_many_parts(highest)}")
        self.class_parts, self._part_names = class_parts, part_names
        if part_names is not None and len(part_names) < (self.num_parts or 0):
            raise PointCloudError(f"there are {len(part_names)} names for {self.num_parts} parts; name each of them")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def num_parts(self) -> int | None:
        """Number of parts over all classes, None without parts."""
        if self.class_parts is None:
            return None
        highest = 1 + max(part for parts in self.class_parts for part in parts)
        return max(highest, len(self._part_names or ()))

    @property
    def part_names(self) -> list[str] | None:
        """Name of each part, None without parts."""
        if self.class_parts is None or self._part_names is not None:
            return None if self.class_parts is None else list(self._part_names)
        names = [f"part {part}" for part in range(self.num_parts)]
        for part in range(self.num_parts):
            owners = [label for label, parts in enumerate(self.class_parts) if part in parts]
            if len(owners) == 1 and self.num_classes > 1:
                names[part] = f"{self.class_names[owners[0]]} {self.class_parts[owners[0]].index(part)}"
        return names

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"PointCloudDataset({len(self)} clouds, {self.num_classes} classes, num_points={self.num_points})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of a data set of {len(self)} clouds")
        place, sample_id = int(self._places[index]), int(self.sample_ids[index])
        rows = np.asarray(self.clouds[place])
        if rows.ndim != 2 or rows.shape[1] < 3:
            raise PointCloudError(f"cloud {sample_id} must be of shape (num_points, 3), got {rows.shape}")
        parts = None if self.class_parts is None and self._part_labels is None else self._parts_of(place, rows)
        points = rows[:, :3]
        if points.dtype != np.float32:  # else only what is chosen below is read and copied
            points = to_float32(points, f"cloud {sample_id}")
        chosen = self._choose(len(rows), sample_id)
        item = {"points": torch.from_numpy(np.array(points[chosen]))}
        if parts is not None:
            item["part_labels"] = torch.from_numpy(np.array(parts[chosen], dtype=np.int64))
        return {**item, "labels": int(self.labels[index]), "sample_ids": sample_id}

    def _parts_of(self, place: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Give the label of each point of a cloud; files of clouds with parts carry it in a fourth column."""
        if self._part_labels is not None:
            return np.asarray(self._part_labels[place])
        return (self.clouds[place] if rows is None else rows)[:, 3]

    def occurring_parts(self) -> list[set[int]]:
        """Give the parts, numbers of 0 or above, that points of each class have."""
        found: list[set[int]] = [set() for _ in self.class_names]
        for index, (label, place) in enumerate(zip(self.labels, self._places, strict=True)):
            parts = np.unique(self._parts_of(int(place))).astype(np.int64)
            if len(parts) and parts[-1] >= MAX_PARTS:
                raise PointCloudError(
                    f"{self.names_of([self.sample_ids[index]])[0]}: {too_many_parts(int(parts[-1]))}"
                )
            found[label] |= set(parts[parts >= 0].tolist())
        return found

    def _choose(self, available: int, sample_id: int) -> np.ndarray | slice:
        """Choose `num_points` of the points of a cloud."""
        if self.num_points is None or self.num_points == available:
            return slice(None)
        if available < self.num_points:
            return np.arange(self.num_points) % available
        if self.sampling == "first":
            return slice(self.num_points)
        return np.random.default_rng([self.seed, sample_id]).choice(available, self.num_points, replace=False)

    def names_of(self, sample_ids: Sequence[int] | np.ndarray) -> list[str]:
        """Give what a person finds clouds by, given their `sample_ids`: files if there are any, else numbers."""
        files = getattr(self.clouds, "files", ())
        places = dict(zip(self.sample_ids.tolist(), self._places.tolist(), strict=True))
        return [printable(files[places[int(number)]]) if files else f"cloud {int(number)}" for number in sample_ids]

    def select(self, indices: Sequence[int] | np.ndarray) -> PointCloudDataset:
        """Give some of the items as a data set of its own, which shares the clouds and keeps their `sample_ids`.

        Args:
            indices: Which items, in which order; integers of shape `(num_chosen,)`.

        Returns:
            The data set.

        Raises:
            ValueError: If an index is out of range.
        """
        indices = as_integers(indices, "indices", "num_chosen")
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise ValueError(f"indices go from 0 to {len(self) - 1}, got {indices.min()} to {indices.max()}")
        subset = copy.copy(self)
        subset.labels, subset.sample_ids = self.labels[indices], self.sample_ids[indices]
        subset._places = self._places[indices]
        return subset

    def keep_classes(self, classes: Sequence[int]) -> PointCloudDataset:
        """Give the items of some classes, numbered anew: the first of `classes` becomes class 0.

        Args:
            classes: Class numbers, in the order of the new ones.

        Returns:
            The data set.
        """
        classes = [int(label) for label in classes]
        new_labels = np.full(self.num_classes, -1)
        new_labels[classes] = np.arange(len(classes))
        subset = self.select(np.flatnonzero(new_labels[self.labels] >= 0))
        subset.labels = new_labels[subset.labels]
        subset.class_names = [self.class_names[label] for label in classes]
        if self.class_parts is not None:
            subset.class_parts = [self.class_parts[label] for label in classes]
        return subset


def find_class_parts(datasets: Collection[PointCloudDataset], root: str | None = None) -> list[list[int]]:
    """Collect the parts that each class has in data sets of the same classes; with `root`, none at all is an error."""
    names = next(iter(datasets)).class_names
    by_class = zip(*(dataset.occurring_parts() for dataset in datasets), strict=True)
    class_parts = [sorted(set().union(*found)) for found in by_class]
    for name, parts in zip(names, class_parts, strict=True):
        if not parts and root is not None:
            raise PointCloudError(f"{root}: no point of the category {name!r} has a label of 0 or above; label some")
    return class_parts


def too_many_parts(label: int) -> str:
    """Say why a number cannot be that of a part: a model has an output for each number up to the highest."""
    text = (
        f"the label {label} is not the number of a part: parts are numbered from 0 on, up to {MAX_PARTS - 1}; number "
        "them anew (numpy.unique(labels, return_inverse=True))"
    )
    if label > 0xFFFF:
        text += ", or, if these are SemanticKITTI's labels of class and object, keep the class: labels & 0xFFFF"
    return text


def check_class_names(class_names: Sequence[str], where: str = "class_names") -> list[str]:
    """Check that classes have names that can be saved and told apart, upper and lower case aside, and return them.

    `where` is what the error names, such as a file.
    """
    names = [str(name) for name in class_names]
    if not names:
        raise PointCloudError(f"{where}: is empty; name at least one class")
    seen: dict[str, str] = {}
    for name in names:
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name) or "\ufffd" in name:
            raise PointCloudError(f"{where}: the class name {name!a} cannot be shown; rename it, in UTF-8")
        key = looks_like(name)
        if key in seen and name.casefold() != seen[key].casefold():
            raise PointCloudError(
                f"{where}: the classes {seen[key]!a} and {name!a} look the same, "
                f"{unicodedata.normalize('NFC', name)!r}, but are written in two ways; merge or rename"
            )
        if key in seen:
            raise PointCloudError(
                f"{where}: the classes {seen[key]!r} and {name!r} differ by upper and lower case at most; merge or "
                "rename"
            )
        seen[key] = name
    return names


def check_labels(labels: Sequence[int] | np.ndarray, num_classes: int, where: str) -> np.ndarray:
    """Check that labels, integers of shape `(num_clouds,)` or `(num_clouds, 1)`, are class numbers.

    Returns them as int64 of shape `(num_clouds,)`. `where` is what the error names, such as a file.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    labels = as_integers(labels, f"{where}: labels", "num_clouds")
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise PointCloudError(
            f"{where}: label {labels[bad[0]]} of cloud {bad[0]} is out of range; {num_classes} classes have the "
            f"labels 0 to {num_classes - 1}"
        )
    return labels


class _ColumnClouds(Sequence):
    """A column of a Hugging Face data set as a sequence of clouds."""

    def __init__(self, dataset: Any, column: str):
        self.dataset = dataset.select_columns([column]) if hasattr(dataset, "select_columns") else dataset
        self.column = column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> np.ndarray:
        value = self.dataset[int(index)][self.column]
        try:
            cloud = np.asarray(value)
            if cloud.dtype != np.float32:
                cloud = cloud.astype(np.float64)
        except (TypeError, ValueError):
            raise PointCloudError(
                f"row {index}, column {self.column!r}: not an array of points: {shorten(value)}"
            ) from None
        if cloud.ndim != 2 or cloud.shape[1] < 3 or len(cloud) < 2 or not np.isfinite(cloud).all():
            raise PointCloudError(
                f"row {index}, column {self.column!r}: needs finite coordinates of shape (num_points, 3), at least 2 "
                f"points; got shape {cloud.shape}{'' if np.isfinite(cloud).all() else ' with NaN or infinite values'}"
            )
        check_extent(cloud[:, :3], f"row {index}, column {self.column!r}")
        return cloud


def from_hf_dataset(
    dataset: Any,
    points_column: str = "points",
    label_column: str = "label",
    *,
    class_names: Sequence[str] | None = None,
    num_points: int | None = None,
    seed: int = 0,
) -> PointCloudDataset | dict[str, PointCloudDataset]:
    """Make a data set from one of the Hugging Face `datasets` library.

    Args:
        dataset: A `datasets.Dataset`, or a `DatasetDict` of splits.
        points_column: Column of clouds, each of shape `(num_points, 3)`.
        label_column: Column of classes: a `ClassLabel`, integers, or names.
        class_names: Names of the classes; by default those of the `ClassLabel`, the names found, or the numbers.
        num_points: Points of an item, as in `PointCloudDataset`.
        seed: Seed of the draw of points.

    Returns:
        The data set, or a dictionary of them with the keys of the `DatasetDict`.

    Raises:
        PointCloudError: If a column is missing, or labels are not of the kinds above.
    """
    is_dict = isinstance(dataset, Mapping)
    splits = dict(dataset) if is_dict else {"": dataset}
    for name, split in splits.items():
        columns = list(getattr(split, "column_names", None) or split[0])
        for column in (points_column, label_column):
            if column not in columns:
                raise PointCloudError(f"split {name!r} has no column {column!r}; it has {columns}")
    labels = {name: list(split[label_column]) for name, split in splits.items()}
    found = sorted({label for values in labels.values() for label in values}, key=str)
    if class_names is None:
        feature = next((split.features for split in splits.values() if getattr(split, "features", None)), {})
        class_names = getattr(feature.get(label_column), "names", None)
    if found and all(isinstance(label, str) for label in found):
        class_names = list(class_names or found)
        unknown = sorted(set(found) - set(class_names))
        if unknown:
            raise PointCloudError(f"column {label_column!r}: the labels {unknown} are not among {class_names}")
        labels = {name: [class_names.index(label) for label in values] for name, values in labels.items()}
    elif not all(isinstance(label, int | np.integer) for label in found):
        raise PointCloudError(f"column {label_column!r} must hold integers or names, got {shorten(found)}")
    elif class_names is None:
        class_names = [str(number) for number in range(int(max(found, default=0)) + 1)]
    made = {
        name: PointCloudDataset(
            _ColumnClouds(split, points_column), labels[name], class_names, num_points=num_points, seed=seed
        )
        for name, split in splits.items()
    }
    return made if is_dict else made[""]
