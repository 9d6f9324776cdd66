"""Scenes as a data set: whole ones, or tiles of those that are large."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..part_files import UNLABELLED
from ..sources import PackedClouds
from .classes import SceneClasses, given_names
from .reading import read_scene
from .scene import Scene
from .tiles import cut_tiles

# Columns of a parsed scene, in float32: NaN where it has no colours or normals.
_COLORS, _NORMALS, _LABEL, _TILE, _WIDTH = slice(3, 6), slice(6, 9), 9, 10, 11


def read_rows(path: Path, *, grid_size: float, max_voxels: int, overlap: float | None, **reading: Any) -> np.ndarray:
    """Read a scene for the cache, cut into tiles if it is large; arguments as for `cut_tiles` and `read_scene`.

    Returns an array of shape `(num_rows, 11)`, float32: x, y, z, red, green, blue, normal, the number of the label in
    the file and of the tile; tile by tile. A point around the core of a tile comes without its label: each label is
    there once.
    """
    scene = read_scene(path, **reading)

    def tiles():
        return cut_tiles(scene.points, grid_size, max_voxels, overlap, scene.name)

    # Cut twice rather than kept: the tiles of a large scan would double its memory.
    table = np.full((sum(len(tile.rows) for tile in tiles()), _WIDTH), np.nan, dtype=np.float32)
    table[:, _LABEL] = UNLABELLED
    start = 0
    for number, tile in enumerate(tiles()):
        part = table[start : start + len(tile.rows)]
        part[:, :3] = scene.points[tile.rows]
        if scene.colors is not None:
            part[:, _COLORS] = scene.colors[tile.rows]
        if scene.normals is not None:
            part[:, _NORMALS] = scene.normals[tile.rows]
        if scene.labels is not None:
            part[:, _LABEL] = np.where(tile.core, scene.labels[tile.rows], UNLABELLED)
        part[:, _TILE] = number
        start += len(part)
    return table


class ScenePieces(Sequence):
    """The tiles of parsed scenes, one after the other, with how often each label occurs in them.

    Each of the `clouds` is what `read_rows` gives of a scene; `names` is what messages call the scenes.
    """

    def __init__(self, clouds: Sequence, names: Sequence[str]):
        # Without a cache the scenes are kept, as parsing one for each of its tiles would take for ever.
        self.clouds = clouds if isinstance(clouds, PackedClouds) else list(clouds)
        self.names = list(names)
        places, counts = [], []
        for index in range(len(self.clouds)):
            rows = self._rows(index, 0, None)
            borders = np.flatnonzero(np.diff(rows[:, _TILE])) + 1
            for start, end in zip([0, *borders], [*borders, len(rows)], strict=True):
                values, numbers = np.unique(rows[start:end, _LABEL].astype(np.int64), return_counts=True)
                places.append((index, start, end))
                counts.append(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
        self.places = np.array(places, dtype=np.int64)
        self.counts = counts

    def _rows(self, index: int, start: int, end: int | None) -> np.ndarray:
        if isinstance(self.clouds, PackedClouds):
            return self.clouds.view(index, start, end)
        return self.clouds[index][start:end]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Scene:
        scene, start, end = self.places[index].tolist()
        rows = np.array(self._rows(scene, start, end))
        return Scene(
            points=rows[:, :3],
            colors=None if np.isnan(rows[0, _COLORS]).any() else rows[:, _COLORS].astype(np.uint8),
            normals=None if np.isnan(rows[0, _NORMALS]).any() else rows[:, _NORMALS],
            labels=rows[:, _LABEL].astype(np.int64),
            name=self.names[scene],
        )


class SceneDataset(Dataset):
    """Scenes with a label for each point.

    Args:
        scenes: A sequence of [`Scene`] with labels.
        class_names: Names of the classes, or what the numbers of the labels mean.
        indices: Which of the scenes belong to the data set; all by default. Their numbers stay their `sample_ids`.

    Attributes:
        class_names: Names of the classes, by the labels that items have.
        label_values: The number that each class has in the files.
        sample_ids: Numbers of the scenes.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        class_names: Sequence[str] | SceneClasses,
        indices: Sequence[int] | None = None,
    ):
        if not isinstance(class_names, SceneClasses):
            named = given_names(class_names, Path())
            class_names = SceneClasses(tuple(named.values()), tuple(named))
        self.scenes = scenes
        self.classes = class_names
        self.class_names = list(class_names.names)
        self.label_values = list(class_names.values)
        self.sample_ids = np.arange(len(scenes)) if indices is None else np.asarray(indices, dtype=np.int64)
        self._table = class_names.table()

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one scene or tile.

        Args:
            index: Its place in the data set.

        Returns:
            `points`, tensor of shape `(num_points, 3)`, float32; `labels`, `(num_points,)`, int64, -100 where there
            is none; `colors`, `(num_points, 3)`, uint8, and `normals`, `(num_points, 3)`, float32, where the scene has
            them; `sample_ids`, int.
        """
        number = int(self.sample_ids[index])
        scene = self.scenes[number]
        parts = {"points": scene.points, "colors": scene.colors, "normals": scene.normals}
        parts["labels"] = self._classes_of(scene.labels)
        item = {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items() if part is not None}
        return {**item, "sample_ids": number}

    def _classes_of(self, labels: np.ndarray) -> np.ndarray:
        known = (labels >= 0) & (labels < len(self._table))
        return np.where(known, self._table[np.where(known, labels, 0)], UNLABELLED)

    def select(self, places: Sequence[int] | np.ndarray) -> SceneDataset:
        """Make a data set of some of the scenes, by their places in this one."""
        return SceneDataset(self.scenes, self.classes, self.sample_ids[np.asarray(places, dtype=np.int64)])

    def names_of(self, numbers: Sequence[int]) -> list[str]:
        """Give what messages call the scenes of these `sample_ids`."""
        return [self.scenes[number].name for number in numbers]

    def scene_of(self, index: int) -> int:
        """Give the number of the scene that an item is a tile of; that of the item where scenes are not cut."""
        number = int(self.sample_ids[index])
        return int(self.scenes.places[number, 0]) if isinstance(self.scenes, ScenePieces) else number

    def label_counts(self, index: int) -> np.ndarray:
        """Count the points of each class in an item; int64, of shape `(num_classes,)`."""
        number = int(self.sample_ids[index])
        if isinstance(self.scenes, ScenePieces):
            counts = self.scenes.counts[number]
            return np.array([counts.get(value, 0) for value in self.label_values], dtype=np.int64)
        labels = self._classes_of(self.scenes[number].labels)
        return np.bincount(labels[labels >= 0], minlength=len(self.class_names))

    @property
    def class_counts(self) -> np.ndarray:
        """Points of each class in the whole data set; int64, of shape `(num_classes,)`."""
        empty = np.zeros(len(self.class_names), dtype=np.int64)
        return sum((self.label_counts(index) for index in range(len(self))), empty)
