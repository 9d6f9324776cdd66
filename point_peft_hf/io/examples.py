"""Training clouds that are stored with an adapter on request: a few whole ones, and a thumbnail and a name of each."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .files import find_file

EXAMPLES_NAME = "examples.safetensors"
THUMBNAIL_POINTS = 128
EXAMPLE_POINTS = 2048
MAX_EXAMPLES = 12
_MAX_BYTES = 64_000_000


@dataclass
class TrainingExamples:
    """Training clouds as they are stored with an adapter.

    Attributes:
        names: Name of each training cloud: its file with the folder it lies in, or its number.
        labels: Class of each, int64, of shape `(num_clouds,)`.
        sample_ids: Number of each in its data set, int64, of shape `(num_clouds,)`.
        thumbnails: Some points of each, y up, uint8 from 0 to 255, of shape `(num_clouds, 128, 3)`.
        places: Which of them are there as whole clouds, int64, of shape `(num_examples,)`.
        clouds: These, as they are in their files but for their place, float32, of shape
            `(num_examples, 2048, 3)`.
    """

    names: list[str]
    labels: np.ndarray
    sample_ids: np.ndarray
    thumbnails: np.ndarray
    places: np.ndarray
    clouds: np.ndarray

    @classmethod
    def of(cls, dataset: Any, processor: Any) -> TrainingExamples:
        """Take them from the training clouds: one of each class, until there are 12, whole.

        Args:
            dataset: The training clouds.
            processor: Prepares the clouds for the model; it turns them y up.
        """
        labels = np.asarray(dataset.labels, dtype=np.int64)
        first = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]
        places = first[:MAX_EXAMPLES]
        thumbnails, clouds = [], []
        for place in range(len(dataset)):
            points = dataset[place]["points"]
            prepared = processor(points)["points"][0].numpy()
            thumbnails.append(_thumbnail(prepared))
            if place in places:
                clouds.append(_resized(points.numpy() - points.numpy().mean(axis=0), EXAMPLE_POINTS))
        # Only the end of a path: the rest says where it lies on this machine.
        names = ["/".join(Path(name).parts[-2:]) for name in dataset.names_of(dataset.sample_ids)]
        ids = np.asarray(dataset.sample_ids, dtype=np.int64)
        return cls(names, labels, ids, np.stack(thumbnails), np.array(sorted(places)), np.stack(clouds))

    def save(self, folder: str | os.PathLike) -> None:
        """Write them to a folder."""
        arrays = {
            name: np.ascontiguousarray(getattr(self, name))
            for name in ("labels", "sample_ids", "thumbnails", "places", "clouds")
        }
        save_file(arrays, Path(folder) / EXAMPLES_NAME, metadata={"names": json.dumps(self.names)})

    @classmethod
    def load(cls, adapter: str | os.PathLike) -> TrainingExamples | None:
        """Read those of an adapter.

        Args:
            adapter: Folder or Hub repository.

        Returns:
            They, or `None` where none are stored.

        Raises:
            ValueError: If the file is damaged.
        """
        path = find_file(adapter, EXAMPLES_NAME)
        if path is None:
            return None
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ValueError(f"it has {path.stat().st_size} bytes, more than {_MAX_BYTES}")
            with safe_open(path, framework="np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                names = json.loads((file.metadata() or {}).get("names", "null"))
            return cls(names, **arrays)._checked()
        except (SafetensorError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: damaged, {error}. Train again, or delete the file.") from error

    def _checked(self) -> TrainingExamples:
        count, examples = len(self.labels), len(self.places)
        expected = {
            "labels": ((count,), np.int64),
            "sample_ids": ((count,), np.int64),
            "thumbnails": ((count, THUMBNAIL_POINTS, 3), np.uint8),
            "places": ((examples,), np.int64),
            "clouds": ((examples, EXAMPLE_POINTS, 3), np.float32),
        }
        for name, (shape, dtype) in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"{name!r} must be {np.dtype(dtype)} of shape {shape}, got {array.dtype} {array.shape}"
                )
        if not isinstance(self.names, list) or len(self.names) != count:
            raise ValueError(f"there are not {count} names")
        if examples and not (0 <= self.places.min() and self.places.max() < count):
            raise ValueError("'places' are out of range")
        if not np.isfinite(self.clouds).all():
            raise ValueError("'clouds' are not all finite")
        self.names = [str(name) for name in self.names]
        return self

    def find(self, sample_ids: Sequence[int]) -> list[int | None]:
        """Where the clouds of some numbers are; `None` for those that are not there."""
        place_of = {int(number): place for place, number in enumerate(self.sample_ids)}
        return [place_of.get(int(number)) for number in sample_ids]


def _resized(points: np.ndarray, count: int) -> np.ndarray:
    """As many points: the same random ones each time, or some repeated."""
    if len(points) > count:
        points = points[np.sort(np.random.default_rng(0).choice(len(points), count, replace=False))]
    return points[np.arange(count) % len(points)].astype(np.float32)


def _thumbnail(points: np.ndarray) -> np.ndarray:
    points = _resized(points, THUMBNAIL_POINTS)
    low, high = points.min(axis=0), points.max(axis=0)
    middle, extent = (low + high) / 2, max(float((high - low).max()), 1e-12)
    return np.clip(127.5 + 255 * (points - middle) / extent, 0, 255).round().astype(np.uint8)
