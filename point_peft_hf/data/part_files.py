"""Files of clouds with a label for each point."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .errors import PointCloudError
from .formats.arrays import load_npz_array
from .formats.ply import read_ply
from .formats.text import read_column_names, read_table
from .label_files import find_label_file, read_bin, read_label_file
from .readers import Reader, choose_reader, errors_of, to_float32
from .sources import MAX_CACHED_POINTS, check_extent

# What a column, a vertex property or an array of labels is called, upper and lower case aside; with the names that
# CloudCompare gives its scalar fields.
LABEL_NAMES = tuple(
    prefix + name
    for prefix in ("", "scalar_")
    for name in ("part", "parts", "part_label", "part_labels", "part_id", "label", "labels", "seg", "segment")
)
# Points that nobody labelled; in files any number below 0.
UNLABELLED = -100
# Up to here float32, in which clouds are kept, has all whole numbers.
_MAX_LABEL = 2**24
_TEXT = (".xyz", ".txt", ".csv", ".pts", ".asc")


def read_labelled_cloud(path: Path, drop_invalid: bool = False) -> np.ndarray:
    """Read a cloud with a label for each point.

    The labels are, in this order:

    - a file of their own, in the order of the points: `find_label_file` says what it is called, `read_label_file`
      what it holds;
    - in text files the column of one of `LABEL_NAMES`, or without names the last column of 4 (x y z label) or of 7
      (x y z, normal, label);
    - in .ply files the vertex property of such a name; in .npz files the array of such a name;
    - in .npy files the last column of 4 or 7.

    A mesh gives its vertices. Clouds of more points than a data set keeps are thinned at random, always the same.

    Args:
        path: The file.
        drop_invalid: Leave out points with NaN or infinite coordinates instead of refusing the file.

    Returns:
        Array of shape `(num_points, 4)`: x, y, z in the unit of the file and the label, -100 where the file has a
        number below 0; float32.

    Raises:
        PointCloudError: If the file is broken, has no labels, or other labels than whole numbers.
    """
    beside = find_label_file(path)
    labelled_bin = path.suffix.lower() == ".bin" and beside is not None
    reader = None if labelled_bin else choose_reader(path)
    suffix = path.suffix.lower()
    with errors_of(path):
        if beside is not None:
            labels = read_label_file(beside)
            points = read_bin(path, len(labels)) if labelled_bin else reader(path)[0]
        elif suffix in _TEXT:
            points, labels = _read_text(path)
        elif suffix == ".ply":
            rows, _ = read_ply(path, LABEL_NAMES)
            points, labels = rows[:, :3], rows[:, 3]
        elif suffix in (".npy", ".npz"):
            points, labels = _read_array(path, reader)
        else:
            raise PointCloudError(f"{path}: has no labels; write them to {path.stem}.seg, one number a line")
        points, labels = np.asarray(points), np.asarray(labels, dtype=np.float64)
    if len(points) != len(labels):
        raise PointCloudError(f"{path}: has {len(points)} points, but {len(labels)} labels")
    return _check(path, points, labels, drop_invalid)


def _check(path: Path, points: np.ndarray, labels: np.ndarray, drop_invalid: bool) -> np.ndarray:
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        if not drop_invalid:
            raise PointCloudError(
                f"{path}: {int((~finite).sum())} of {len(points)} points have NaN or infinite values; "
                "drop_invalid=True (--drop_invalid) leaves such points out"
            )
        points, labels = points[finite], labels[finite]
    if len(points) < 2:
        raise PointCloudError(f"{path}: holds {len(points)} points; a cloud has at least 2")
    check_extent(points, path)
    wrong = labels[~(np.isfinite(labels) & (labels == np.round(labels)))]
    if len(wrong):
        raise PointCloudError(f"{path}: labels must be whole numbers, got {wrong[0]:g}; is the last column the label?")
    if len(labels) and labels.max() > _MAX_LABEL:
        raise PointCloudError(
            f"{path}: the label {labels.max():.0f} is too large for the number of a part; number the parts from 0 on "
            "(of a SemanticKITTI label the lower 16 bits are the class)"
        )
    labels = np.where(labels < 0, UNLABELLED, labels)
    if len(points) > MAX_CACHED_POINTS:
        kept = np.sort(np.random.default_rng(0).choice(len(points), MAX_CACHED_POINTS, replace=False))
        points, labels = points[kept], labels[kept]
    return np.concatenate([to_float32(points, path), labels[:, None].astype(np.float32)], axis=1)


def _read_text(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table, names = read_table(path), read_column_names(path)
    if names is not None:
        named = [column for column, name in enumerate(names) if column > 2 and name in LABEL_NAMES]
        if not named:
            raise PointCloudError(f"{path}: no column is named {', '.join(LABEL_NAMES)}; its header has {names}")
        return table[:, :3], table[:, named[0]]
    return table[:, :3], _last_column(path, table)


def _read_array(path: Path, reader: Reader) -> tuple[np.ndarray, np.ndarray]:
    points, _ = reader(path)
    if path.suffix.lower() == ".npz":
        labels = load_npz_array(path, LABEL_NAMES)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1:
            raise PointCloudError(f"{path}: the labels must be of shape (num_points,), got {labels.shape}")
        return points, labels
    return points, _last_column(path, np.load(path, mmap_mode="r", allow_pickle=False))


def _last_column(path: Path, table: np.ndarray) -> np.ndarray:
    if table.shape[1] not in (4, 7):
        raise PointCloudError(
            f"{path}: has {table.shape[1]} columns without names; for labels it needs 4 (x y z label) or 7 (x y z, "
            f"normal, label), or a file {path.stem}.seg with one number a line"
        )
    return np.asarray(table[:, -1])
