"""Classes, single shapes and the dataset of procedural point clouds."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from . import assemblies, furniture, household, tools, vehicles
from .corruption import ScanCorruption, get_corruption, normalize_unit_sphere
from .primitives import Surface

_BUILDERS: dict[str, Callable[[np.random.Generator], Surface]] = {
    **furniture.BUILDERS,
    **household.BUILDERS,
    **tools.BUILDERS,
    **vehicles.BUILDERS,
    "assembly": assemblies.assembly,
}

HELD_OUT_CLASSES: tuple[str, ...] = (
    "armchair",
    "bed",
    "bench",
    "bowl",
    "cooking_pot",
    "hammer",
    "mug",
    "side_table",
    "sofa",
    "stool",
    "teapot",
    "wrench",
)
"""Classes of the default fine-tuning task, kept out of pre-training; chosen to contain look-alikes."""

ASSEMBLY = "assembly"
"""Random assemblies of primitives, of no class: to pre-train on, beside the classes."""

BASE_CLASSES: tuple[str, ...] = tuple(sorted(set(_BUILDERS) - {ASSEMBLY, *HELD_OUT_CLASSES}))
"""Classes for pre-training."""

ALL_CLASSES: tuple[str, ...] = BASE_CLASSES + HELD_OUT_CLASSES
"""All classes, base first."""

SPLITS: tuple[str, ...] = ("train", "validation", "test")
"""Names of the independent splits."""


def _check_class(class_name: str) -> None:
    if not isinstance(class_name, str) or class_name not in _BUILDERS:
        close = difflib.get_close_matches(str(class_name), ALL_CLASSES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown class {class_name!r}.{hint} Known classes: {', '.join(sorted(ALL_CLASSES))}.")


def _check_integer(name: str, value: int, minimum: int, advice: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}. {advice}")
    return int(value)


def sample_shape(class_name: str, num_points: int = 1024, rng: np.random.Generator | int | None = None) -> np.ndarray:
    """Build one random shape of a class and sample its surface uniformly by area.

    Args:
        class_name: One of `ALL_CLASSES`, or `ASSEMBLY`.
        num_points: Number of points N (default 1024).
        rng: Random generator, or a seed for one (default: a fresh, unseeded generator).

    Returns:
        Points (N, 3), float32, y up, centred on their mean, in random order, with largest norm 1.

    Raises:
        ValueError: If the class is unknown or `num_points` is below 1.
    """
    _check_class(class_name)
    num_points = _check_integer("num_points", num_points, 1, "Ask for one point or more.")
    rng = np.random.default_rng(rng)
    return normalize_unit_sphere(_BUILDERS[class_name](rng).sample(num_points, rng))


class ProceduralShapes(Dataset):
    """Labelled procedural point clouds that need no download.

    A cloud is a pure function of the seed, the split, the name of its class and its number within the class: it does
    not depend on the other classes, on their order, on `clouds_per_class`, or on which process makes it. The object
    behind a cloud does not depend on the corruption either, so clean and corrupted datasets can be compared cloud by
    cloud. Indices interleave the classes (item i has label i mod `num_classes`), so that every prefix is balanced and
    indices stay valid when `clouds_per_class` grows.

    Args:
        class_names: Names from `ALL_CLASSES` or `ASSEMBLY`; label k is the k-th name (default `HELD_OUT_CLASSES`).
        clouds_per_class: Number of clouds of each class (default 100).
        num_points: Points per cloud N (default 1024).
        seed: Seed, an integer of at least 0 (default 0).
        split: `"train"` (default), `"validation"` (or `"val"`) or `"test"`; splits share no shape.
        corruption: Name of a preset in `CORRUPTION_PRESETS` or a `ScanCorruption` (default `"clean"`).
        cache: Keep every cloud in memory after its first use (default True), in each process for itself.

    Attributes:
        class_names: List of the class names, in label order.
        num_classes: Number of classes.
        labels: Labels (len,), int64.

    Raises:
        ValueError: If a class, the split or the corruption is unknown, a class is repeated or none is given, or a
            number is below its minimum.
    """

    def __init__(
        self,
        class_names: Sequence[str] = HELD_OUT_CLASSES,
        clouds_per_class: int = 100,
        num_points: int = 1024,
        seed: int = 0,
        split: str = "train",
        corruption: str | ScanCorruption = "clean",
        cache: bool = True,
    ) -> None:
        if isinstance(class_names, str):
            raise ValueError(f"class_names must be a sequence of names, got the string {class_names!r}. Pass a list.")
        self.class_names = list(class_names)
        if not self.class_names:
            raise ValueError("class_names is empty. Pass at least one name, for example HELD_OUT_CLASSES.")
        for name in self.class_names:
            _check_class(name)
        repeated = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
        if repeated:
            raise ValueError(f"class_names repeats {', '.join(repeated)}. Pass each class once.")
        split = "validation" if split == "val" else split
        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}. Pass one of {', '.join(SPLITS)}.")
        self.clouds_per_class = _check_integer("clouds_per_class", clouds_per_class, 1, "Ask for one cloud or more.")
        self.num_points = _check_integer("num_points", num_points, 1, "Ask for one point or more.")
        self.seed = _check_integer("seed", seed, 0, "NumPy seeds cannot be negative.")
        self.split = split
        self.corruption = get_corruption(corruption)
        self.cache = bool(cache)
        self.num_classes = len(self.class_names)
        self.labels = np.tile(np.arange(self.num_classes, dtype=np.int64), self.clouds_per_class)
        self._lazy: dict[int, np.ndarray] = {}
        self._memory: np.ndarray | None = None

    def __len__(self) -> int:
        return self.num_classes * self.clouds_per_class

    def _generate(self, index: int) -> np.ndarray:
        """Make cloud `index`, (N, 3) float32."""
        name = self.class_names[index % self.num_classes]
        # crc32 and not hash(): the latter differs from process to process.
        key = [self.seed, zlib.crc32(self.split.encode()), zlib.crc32(name.encode()), index // self.num_classes]
        shape_rng, corruption_rng = (np.random.default_rng([stream, *key]) for stream in (0, 1))
        points = sample_shape(name, self.num_points * self.corruption.oversample, shape_rng)
        return self.corruption.apply(points, corruption_rng, self.num_points)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one cloud.

        Args:
            index: Position, from -len to len - 1.

        Returns:
            `"points"`: tensor (N, 3), float32; `"labels"`: int; `"sample_ids"`: int, the position.

        Raises:
            IndexError: If the position is out of range.
        """
        length = len(self)
        position = int(index) + (length if index < 0 else 0)
        if not 0 <= position < length:
            raise IndexError(f"Index {index} is out of range for {length} clouds. Use -{length} to {length - 1}.")
        if self._memory is not None:
            points = self._memory[position]
        elif position in self._lazy:
            points = self._lazy[position]
        else:
            points = self._generate(position)
            if self.cache:
                self._lazy[position] = points
        # torch.tensor copies: what a transform does to the item in place must not reach the cache.
        return {"points": torch.tensor(points), "labels": position % self.num_classes, "sample_ids": position}

    def materialize(self) -> ProceduralShapes:
        """Generate every cloud into one array in memory, which items are then read from.

        Takes len x `num_points` x 12 bytes. Forked data-loading workers share the array.

        Returns:
            The dataset itself.
        """
        if self._memory is None:
            memory = np.empty((len(self), self.num_points, 3), dtype=np.float32)
            for index in range(len(self)):
                cached = self._lazy.get(index)
                memory[index] = self._generate(index) if cached is None else cached
            self._memory = memory
            self._lazy.clear()
        return self
