"""Where in a file the labels of its points are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import PointCloudError
from .arrays import field_labels, load_npy, read_array_labels
from .columns import pick_label
from .pcd import read_pcd
from .ply import read_ply
from .scans import read_las
from .text import TEXT_SUFFIXES, read_column_names, read_table

_NAMED: dict[str, tuple[Callable, str]] = {".ply": (read_ply, "vertex property"), ".pcd": (read_pcd, "field")}
# A column without a name is no label when it has more values than objects have parts.
_MAX_PARTS = 50


def read_points_and_labels(path: Path, reader: Callable) -> tuple[np.ndarray, np.ndarray]:
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
        if values[-1] >= _MAX_PARTS and len(values) > min(_MAX_PARTS, len(labels) / 10):
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
