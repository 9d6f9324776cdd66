"""Releases as pickles, read without running code: .dat files of ModelNet40, folds of few-shot classification."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import PointCloudDataset, check_labels
from .errors import PointCloudError, shorten
from .layouts_hdf5 import read_names
from .restricted_pickle import load_restricted_pickle
from .sources import LoadOptions, check_extent

MODELNET40_CLASSES = (
    *("airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone"),
    *("cup", "curtain", "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp"),
    *("laptop", "mantel", "monitor", "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink"),
    *("sofa", "stairs", "stool", "table", "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox"),
)


def load_modelnet40_dat(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load modelnet40_train_8192pts_fps.dat and its test file: pickles of a list of clouds and a list of labels."""
    names = next((read_names(path) for path in sorted(root.glob("modelnet40_shape_names.txt"))), MODELNET40_CLASSES)
    splits = {}
    for split in ("train", "test"):
        paths = sorted(root.glob(f"modelnet40_{split}_*.dat"), key=_points_in_name)
        if not paths:
            raise FileNotFoundError(2, "No such file", str(root / f"modelnet40_{split}_8192pts_fps.dat"))
        clouds, labels = read_dat(paths[-1], len(names), options.num_points)
        splits[split] = PointCloudDataset(
            clouds, labels, names, num_points=options.num_points, sampling="first", seed=options.seed
        )
    return splits


def _points_in_name(path: Path) -> int:
    match = re.search(r"_(\d+)pts", path.name)
    return int(match.group(1)) if match else 0


def read_dat(
    path: str | os.PathLike, num_classes: int, num_points: int | None = None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Read a .dat file of ModelNet40: a pickle of `[clouds, labels]`.

    Args:
        path: The file.
        num_classes: Number of classes, to check the labels.
        num_points: Keep the first points of each cloud only; those of the published files are ordered by farthest
            point sampling.

    Returns:
        Clouds of shape `(num_points, 3)`, float32, and labels of shape `(num_clouds,)`, int64.

    Raises:
        PointCloudError: If the file is broken, would run code, or holds something else.
    """
    path = Path(path)
    loaded = load_restricted_pickle(path)
    if not isinstance(loaded, list | tuple) or len(loaded) != 2:
        raise PointCloudError(f"{path}: expected a list of clouds and a list of labels, got {_describe(loaded)}")
    clouds, labels = loaded
    if not all(isinstance(item, list | tuple | np.ndarray) and np.ndim(item) != 0 for item in (clouds, labels)):
        raise PointCloudError(f"{path}: expected a list of clouds and a list of labels, got {_describe(loaded)}")
    if len(clouds) != len(labels) or len(clouds) == 0:
        raise PointCloudError(f"{path}: has {len(clouds)} clouds and {len(labels)} labels")
    clouds = [_cloud(cloud, f"{path}: cloud {index}", num_points) for index, cloud in enumerate(clouds)]
    labels = [_label(label, f"{path}: cloud {index}") for index, label in enumerate(labels)]
    return clouds, check_labels(np.array(labels), num_classes, str(path))


def read_few_shot_fold(
    path: str | os.PathLike, *, num_points: int | None = None, class_names: list[str] | None = None
) -> dict[str, PointCloudDataset]:
    """Read a published fold of few-shot classification, such as `5way_10shot/0.pkl`.

    Args:
        path: The file: a pickle of `{"train": [...], "test": [...]}`, lists of (cloud, label, ...).
        num_points: Points of an item: the first ones of each cloud.
        class_names: Names of the classes 0, 1, ...; by default their numbers.

    Returns:
        Data sets `"train"` (the clouds to learn from) and `"test"`.

    Raises:
        PointCloudError: If the file is broken, would run code, or holds something else.
    """
    path = Path(path)
    loaded = load_restricted_pickle(path)
    if not isinstance(loaded, dict) or not {"train", "test"} <= set(loaded):
        raise PointCloudError(f"{path}: expected a dictionary of 'train' and 'test', got {_describe(loaded)}")
    read = {}
    for split in ("train", "test"):
        rows = loaded[split]
        if not isinstance(rows, list | tuple) or not rows:
            raise PointCloudError(f"{path}: {split!r} must be a list of (cloud, label), got {_describe(rows)}")
        for index, row in enumerate(rows):
            if not isinstance(row, list | tuple) or len(row) < 2:
                raise PointCloudError(f"{path}: {split} {index} must be (cloud, label), got {_describe(row)}")
        clouds = [_cloud(row[0], f"{path}: {split} {index}", num_points) for index, row in enumerate(rows)]
        read[split] = clouds, np.array([_label(row[1], f"{path}: {split} {i}") for i, row in enumerate(rows)])
    if class_names is None:
        class_names = [str(number) for number in range(1 + max(int(labels.max()) for _, labels in read.values()))]
    return {
        split: PointCloudDataset(
            clouds,
            check_labels(labels, len(class_names), str(path)),
            class_names,
            num_points=num_points,
            sampling="first",
        )
        for split, (clouds, labels) in read.items()
    }


def _cloud(value: Any, where: str, num_points: int | None) -> np.ndarray:
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.shape[1] < 3 or len(value) < 2:
        raise PointCloudError(f"{where}: expected an array of shape (num_points, 3 or more), got {_describe(value)}")
    cloud = np.array(value[:num_points, :3], dtype=np.float32)  # a copy, so that normals and later points are freed
    if not np.isfinite(cloud).all():
        raise PointCloudError(f"{where}: has NaN or infinite coordinates")
    check_extent(cloud, where)
    return cloud


def _label(value: Any, where: str) -> int:
    array = np.asarray(value) if isinstance(value, int | np.integer | np.ndarray | list | tuple) else np.empty(0)
    if array.size != 1 or array.dtype.kind not in "iu":
        raise PointCloudError(f"{where}: expected one integer as its label, got {shorten(value)}")
    return int(array.reshape(-1)[0])


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return shorten(value)
