"""Files of clouds with a label for each point."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from .errors import PointCloudError
from .formats.labels import read_points_and_labels
from .formats.scans import read_bin
from .formats.text import read_table
from .label_files import find_label_file, read_label_file
from .readers import choose_reader, errors_of, to_float32
from .sources import MAX_CACHED_POINTS, check_extent

# Points that nobody labelled; in files any number below 0.
UNLABELLED = -100
# Up to here float32, in which clouds are kept, has all whole numbers.
_MAX_LABEL = 2**24


def read_labelled_cloud(path: Path, drop_invalid: bool = False) -> np.ndarray:
    """Read a cloud with a label for each point.

    The labels are, in this order:

    - a file of their own, in the order of the points: `find_label_file` says what it is called, `read_label_file`
      what it holds;
    - in text files the column that is named as labels are (`formats.columns.LABEL_NAMES`), or without names the last
      column of 4 (x y z label) or of 7 (x y z, normal, label), unless it can be something else;
    - in .ply files the vertex property, in .pcd files the field, in .npz and .h5 files the array of such a name;
    - in .npy files the field of such a name, or the last column of 4 or 7;
    - in .las and .laz files the classification.

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
    reader = choose_reader(path)
    beside = find_label_file(path)
    with errors_of(path):
        if beside is None:
            points, labels = read_points_and_labels(path, reader)
        else:
            labels = read_label_file(beside)
            if path.suffix.lower() == ".bin":  # their number says how many columns it has
                reader = partial(read_bin, num_columns=_columns_of_bin(path, len(labels)))
            points = reader(path)[0]
        points, labels = np.asarray(points), np.asarray(labels, dtype=np.float64)
    if len(points) != len(labels):
        raise PointCloudError(f"{path}: has {len(points)} points, but {len(labels)} labels")
    return _check(path, points, labels, drop_invalid)


def read_part_table(path: Path, drop_invalid: bool) -> np.ndarray:
    """Read a text file as `read_labelled_cloud`, with x, y, z in the first columns and the label in the last one."""
    if not path.is_file():
        raise PointCloudError(f"{path}: no such file")
    with errors_of(path):
        table = read_table(path)
    if table.shape[1] < 4:
        raise PointCloudError(f"{path}: needs x, y, z and a part in the last column, got {table.shape[1]} columns")
    return _check(path, table[:, :3], table[:, -1], drop_invalid)


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
    wrong = labels[~(np.isfinite(labels) & (labels == np.round(labels)))]
    if len(wrong):
        raise PointCloudError(f"{path}: labels must be whole numbers, got {wrong[0]:g}; is the last column the label?")
    if len(labels) and labels.max() > _MAX_LABEL:
        raise PointCloudError(
            f"{path}: the label {labels.max():.0f} is too large for the number of a part; number the parts from 0 on "
            "(of a SemanticKITTI label the lower 16 bits are the class)"
        )
    check_extent(points, path)
    labels = np.where(labels < 0, UNLABELLED, labels)
    if len(points) > MAX_CACHED_POINTS:
        kept = np.sort(np.random.default_rng(0).choice(len(points), MAX_CACHED_POINTS, replace=False))
        points, labels = points[kept], labels[kept]
    return np.concatenate([to_float32(points, path), labels[:, None].astype(np.float32)], axis=1)


def _columns_of_bin(path: Path, num_points: int) -> int:
    """Find how many float32 numbers each of `num_points` points has."""
    size = path.stat().st_size
    columns = size // (4 * max(num_points, 1))
    if not 3 <= columns <= 8 or 4 * columns * num_points != size:
        raise PointCloudError(
            f"{path}: its {size} bytes are not x, y, z and up to 5 other float32 numbers for each of the {num_points} "
            "points that its labels are of"
        )
    return columns
