"""Files of clouds with a label for each point, and files of such labels alone."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from .errors import PointCloudError
from .folder_tree import LABEL_SUFFIXES
from .formats.arrays import field_labels, load_npy, read_array_labels
from .formats.columns import pick_label
from .formats.pcd import read_pcd
from .formats.ply import read_ply
from .formats.scans import read_bin, read_las
from .formats.text import TEXT_SUFFIXES, read_column_names, read_table
from .names import COORDINATES, LABELS, printable
from .readers import check_size, choose_reader, errors_of, finite_rows, to_float32
from .sources import check_extent, thin

# Points that nobody labelled; in files any number below 0.
UNLABELLED = -100
# Up to here float32, in which clouds are kept, has all whole numbers.
_MAX_LABEL = 2**24
_NAMED: dict[str, tuple[Callable, str]] = {".ply": (read_ply, "vertex property"), ".pcd": (read_pcd, "field")}
# A column without a name is not a label when it has more values than objects have parts.
_MAX_UNNAMED = 50
_SUFFIXES = (*LABEL_SUFFIXES, ".npy", ".txt", ".csv")
# What stands instead of the ending of a cloud for its labels; each of these is looked for.
_WORDS = ("label", "labels", "seg", "segment", "part", "parts")
_ENDINGS = (*LABEL_SUFFIXES, *(f"_{word}{suffix}" for word in _WORDS for suffix in (".npy", ".txt", ".seg")))
# SemanticKITTI's labels: the class of a point in the lower half, the object that it belongs to in the upper.
_CLASS_BITS = 0xFFFF
_DIGITS = re.compile(rb"[\s\d.+\-eE]*")


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
    label_file = find_label_file(path)
    with errors_of(path):
        if label_file is None:
            points, labels = _read_points_and_labels(path, reader)
        else:
            labels = read_label_file(label_file)
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
    finite = finite_rows(points, path, drop_invalid)
    points, labels = points[finite], labels[finite]
    check_size(len(points), path)
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
    kept = thin(len(points), 0)
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


def _read_points_and_labels(path: Path, reader: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Read points, `(num_points, 3)`, with the `reader`, and the label of each as the file itself has it.

    It is an error if the file does not say which of its numbers are the labels.
    """
    suffix = path.suffix.lower()
    if suffix in _NAMED:
        read, what = _NAMED[suffix]
        rows, _ = read(path, lambda names: [pick_label(names, what)])
        return rows[:, :3], rows[:, 3]
    if suffix in (".las", ".laz"):
        rows, _ = read_las(path, labels=True)
        return rows[:, :3], rows[:, 3]
    if suffix in TEXT_SUFFIXES:
        return _from_text(path)
    if suffix == ".npy":
        points, array = reader(path)[0], load_npy(path)
        if array.dtype.names is not None:
            return points, field_labels(array, path)
        return points, _last_column(path, array[0] if array.ndim == 3 else array)
    if suffix in (".npz", ".h5", ".hdf5"):
        return reader(path)[0], read_array_labels(path)
    raise PointCloudError(f"has no labels; write them to {path.stem}.seg, one number a line")


def _from_text(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table, names = read_table(path), read_column_names(path)
    if names is not None and any(names[3:]):
        return table[:, :3], table[:, pick_label(names, "column")]
    if path.suffix.lower() == ".pts":
        raise PointCloudError(
            f"the columns of a .pts file after x, y, z are intensity and colours, unless a header names one "
            f"label; write the labels to {path.stem}.seg, one number a line"
        )
    return table[:, :3], _last_column(path, table)


def _last_column(path: Path, table: np.ndarray) -> np.ndarray:
    """Take the last of 4 or 7 columns without names, if nothing speaks against its being the label."""
    way_out = f"name the columns, as in 'x y z label', or write the labels to {path.stem}.seg, one number a line"
    if table.shape[1] not in (4, 7):
        raise PointCloudError(
            f"has {table.shape[1]} columns without names; for labels it needs 4 (x y z label) or 7 (x y z, "
            f"normal, label), or a file {path.stem}.seg with one number a line"
        )
    labels = np.asarray(table[:, -1])
    whole = labels[np.isfinite(labels) & (labels == np.round(labels))]
    if len(whole) == len(labels) and len(labels):
        values = np.unique(labels)
        if values[-1] >= _MAX_UNNAMED and len(values) > min(_MAX_UNNAMED, len(labels) / 10):
            raise PointCloudError(
                f"cannot tell whether column {table.shape[1]}, which has no name and {len(values)} different "
                f"values up to {values[-1]:g}, is the label or an intensity or colour; {way_out}"
            )
        between = np.asarray(table[:, 4:6], dtype=np.float64)
        if table.shape[1] == 7 and np.array_equal(between, np.round(between)) and between.max(initial=0) > 1:
            raise PointCloudError(
                f"cannot tell whether its 7 columns without names are x y z red green blue label or x y z "
                f"intensity red green blue; {way_out}"
            )
    return labels


def find_label_file(path: Path) -> Path | None:
    """Find the file with the labels of a cloud; None without one, an error with several.

    It is one of the same name that ends with .seg, .label or .labels in the same folder; or `1_label.npy` for `1.npy`,
    `segment.npy` for `coord.npy` (Pointcept), `points_label/1.seg` for `points/1.pts` (ShapeNetPart), or
    `labels/1.label` for `velodyne/1.bin` (SemanticKITTI).
    """
    base = os.path.splitext(path)[0]
    names = [f"{base}{ending}" for ending in _ENDINGS]
    found = [Path(name) for name in names if os.access(name, os.F_OK)]  # three times faster than to ask for a file
    if path.stem.lower() in COORDINATES:  # the folder is the cloud
        found += [
            entry
            for entry in path.parent.iterdir()
            if entry.suffix.lower() in _SUFFIXES and re.sub(r"\d+$", "", entry.stem.lower()) in LABELS
        ]
    folder = path.parent.name.lower()
    if folder in COORDINATES:
        names = {*LABELS, *(f"{folder}_{word}" for word in LABELS)}
        sides = [entry for entry in path.parent.parent.iterdir() if entry.name.lower() in names]
        found += [side / f"{path.stem}{suffix}" for side in sides for suffix in _SUFFIXES]
    found = sorted({candidate for candidate in found if candidate.is_file()})
    if len(found) > 1:
        raise PointCloudError(
            f"{printable(path)}: both {printable(found[0])} and {printable(found[1])} can hold its labels; keep one"
        )
    return found[0] if found else None


def read_label_file(path: Path) -> np.ndarray:
    """Read one label a point, of shape `(num_points,)`.

    The file is text with one number a line, .npy of shape `(num_points,)` or `(num_points, 1)`, or the binary .label
    of SemanticKITTI, of which the class is taken (the lower 16 bits).
    """
    if path.suffix.lower() == ".npy":
        try:
            labels = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, SyntaxError) as error:
            raise PointCloudError(f"{path}: not a readable .npy file: {error}") from None
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.ndim != 1 or labels.dtype.kind not in "fiu":
            raise PointCloudError(
                f"{path}: labels must be numbers of shape (num_points,), got {labels.dtype} of {labels.shape}"
            )
        return labels
    data = path.read_bytes()
    if path.suffix.lower() == ".label" and not _DIGITS.fullmatch(data):
        if len(data) % 4:
            raise PointCloudError(f"{path}: its {len(data)} bytes are not a uint32 for each point; truncated?")
        return np.frombuffer(data, "<u4") & _CLASS_BITS
    try:
        labels = np.loadtxt(path, ndmin=1, dtype=np.float64)
    except ValueError as error:
        raise PointCloudError(f"{path}: must hold one number a line: {error}") from None
    if labels.ndim != 1:
        raise PointCloudError(f"{path}: must hold one number a line, got {labels.shape[1]} columns")
    return labels
