"""Files of many clouds, .h5 and .npz: data sets of your own, and the arrays of releases."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import ConcatDataset

from .dataset import MAX_PARTS, PointCloudDataset, check_class_names, check_labels, find_class_parts, too_many_parts
from .errors import PointCloudError
from .folder_tree import subfolders
from .formats.arrays import open_arrays
from .names import COORDINATES, is_side_file, printable, read_lines, split_of
from .part_files import UNLABELLED
from .readers import errors_of
from .sources import LoadOptions

ARRAY_SUFFIXES = (".h5", ".hdf5", ".npz")
_CLOUDS = (*COORDINATES, "data", "x", "arr_0")
_CLASSES = ("label", "labels", "y", "class", "classes", "class_id", "cls")
_CLASSES += ("category", "categories", "target", "targets")
_PARTS = ("pid", "part", "parts", "part_label", "part_labels", "seg", "segment", "segmentation", "semantic")
_NAME_LISTS = ("shape_names.txt", "class_names.txt", "classes.txt", "categories.txt")
_MAX_COLUMNS = 16
# Clouds (num_clouds, num_points, 3 or more), classes (num_clouds,), labels of points (num_clouds, num_points).
Arrays = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]


def find_arrays(path: Path) -> Path | None:
    """Return the path if it, or the first such file in it, is a file of many clouds."""
    files = _files(path)
    folders = [] if files or path.is_file() else subfolders(path)
    if len(folders) == 1:
        return find_arrays(folders[0])  # an archive unpacked into a folder of its own
    if not files:
        return None
    try:
        with errors_of(files[0]), open_arrays(files[0]) as arrays:
            shapes = [arrays.shape(name) for name in arrays.names]
    except (PointCloudError, ImportError):  # of one cloud, or broken: the reader of clouds reports it
        return None
    return path if any(len(shape) == 3 and shape[0] > 1 for shape in shapes) else None


def _files(path: Path) -> list[Path]:
    entries = [path] if path.is_file() else sorted(path.iterdir())
    return [
        entry
        for entry in entries
        if entry.suffix.lower() in ARRAY_SUFFIXES and entry.is_file() and not is_side_file(entry.name)
    ]


def load_arrays(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load files of many clouds; `train` and `test` in their names are the splits.

    A file has an array of clouds of shape `(num_clouds, num_points, 3 or more)`, called points, coord, data or the
    like, and one of classes, called label or the like; with parts also a label for each point, called pid, seg or the
    like. Labels of points alone are parts of one category. shape_names.txt or classes.txt names the classes.
    """
    read: dict[str, list[tuple[Path, Arrays]]] = {}
    for file in _files(root):
        read.setdefault(split_of(file.stem) or "", []).append((file, read_arrays(file)))
    if "eval" in read:
        read["test" if "test" not in read else "validation"] = read.pop("eval")
    if len(read) > 1 and ("" in read or "train" not in read):
        odd = read.get("", next(iter(read.values())))[0][0]
        raise PointCloudError(
            f"{printable(odd)}: to which split do its clouds belong? Other files here are {sorted(read)}; "
            "write train, validation or test into the name, or move the file away"
        )
    every = [arrays for files in read.values() for _, arrays in files]
    names = _class_names(root, every)
    has_parts = [parts is not None for _, _, parts in every]
    if any(has_parts) and not all(has_parts):
        raise PointCloudError(f"{printable(root)}: some files have a label for each point, others do not")
    splits = {}
    for split in ("", "train", "validation", "test"):
        if split in read:
            checked = [check_arrays(file, arrays, len(names), options) for file, arrays in read[split]]
            splits[split] = join_arrays(checked, names, options)
    if all(has_parts):
        class_parts = find_class_parts(splits.values(), printable(root))
        for dataset in splits.values():
            dataset.set_parts(class_parts)
    return splits


def read_arrays(path: Path, names: tuple[str, str | None, str | None] | None = None) -> Arrays:
    """Read clouds, classes and labels of points from a file; the last two are None where it has none.

    `names` are those of the three arrays; by default they are found by the usual names and by their shapes.
    """
    with errors_of(path), open_arrays(path) as arrays:
        names = names or _find_names(path, {name: arrays.shape(name) for name in arrays.names})
        clouds, classes, parts = (None if name is None else arrays.load(name) for name in names)
    _check_shape(path, names[0], clouds.shape)
    if clouds.dtype.kind not in "fiu":
        raise PointCloudError(f"{path}: {names[0]!r} must be of real numbers, got {clouds.dtype}")
    if classes is not None and len(classes) != len(clouds):
        raise PointCloudError(
            f"{path}: {names[0]!r} has {len(clouds)} clouds and {names[1]!r} {len(classes)} labels; a cloud has one"
        )
    if parts is None:
        return clouds, classes, None
    if parts.shape not in (clouds.shape[:2], (*clouds.shape[:2], 1)) or parts.dtype.kind not in "iu":
        raise PointCloudError(
            f"{path}: {names[2]!r} must be integers of shape {clouds.shape[:2]}, got {parts.dtype} of {parts.shape}"
        )
    return clouds, classes, parts.reshape(clouds.shape[:2])


def _check_shape(path: Path, name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or not 3 <= shape[2] <= _MAX_COLUMNS or shape[1] < 2:
        transposed = len(shape) == 3 and shape[1] in range(3, _MAX_COLUMNS)
        raise PointCloudError(
            f"{path}: {name!r} must be of shape (num_clouds, num_points, 3), got {shape}"
            + ("; it looks transposed, coordinates come last" if transposed else "")
        )


def _find_names(path: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[str, str | None, str | None]:
    """Find the arrays of clouds, classes and labels of points."""

    def one_of(candidates: list[str], names: tuple[str, ...], what: str, required: bool = False) -> str | None:
        found = [name for name in candidates if name.lower() in names]
        if len(found) == 1 or not (found or required):
            return found[0] if found else None
        got = f"both {found[0]!r} and {found[1]!r} can be that" if found else f"it has {shapes}"
        raise PointCloudError(f"{path}: needs one array of {what}, called {', '.join(names[:3])} or the like; {got}")

    large = [name for name, shape in shapes.items() if len(shape) == 3]
    clouds = one_of(large, _CLOUDS, "clouds, of shape (num_clouds, num_points, 3)", required=True)
    _check_shape(path, clouds, shapes[clouds])
    count, size, _ = shapes[clouds]
    per_cloud = [name for name, shape in shapes.items() if shape in ((count,), (count, 1))]
    per_point = [name for name, shape in shapes.items() if shape in ((count, size), (count, size, 1))]
    classes = one_of(per_cloud, _CLASSES, "classes")
    parts = one_of(per_point, (*_PARTS, *_CLASSES), "labels of points")
    if classes is None and parts is None:
        raise PointCloudError(f"{path}: has no labels: an array called label, of shape ({count},); it has {shapes}")
    return clouds, classes, parts


def _class_names(root: Path, read: list[Arrays]) -> list[str]:
    folder = root if root.is_dir() else root.parent
    lists = [folder / name for name in _NAME_LISTS if (folder / name).is_file()]
    if len(lists) > 1:
        raise PointCloudError(f"{printable(folder)}: both {lists[0].name} and {lists[1].name} name classes; keep one")
    if lists:
        return check_class_names(read_lines(lists[0]), str(lists[0]))
    if all(classes is None for _, classes, _ in read):
        return [folder.name or "object"]
    highest = max(float(np.max(classes)) for _, classes, _ in read if classes is not None)
    if not highest < MAX_PARTS:
        raise PointCloudError(
            f"{printable(root)}: classes are numbered from 0 on, got {highest:.0f}; number them anew, or name them in "
            f"{folder / _NAME_LISTS[0]}"
        )
    return [str(number) for number in range(int(highest) + 1)]


def check_arrays(
    path: Path, arrays: Arrays, num_classes: int, options: LoadOptions, first: int | None = None
) -> Arrays:
    """Check what `read_arrays` gives, and refuse or leave out clouds that are not finite or all in one place.

    Of each cloud the `first` points are kept, all by default. Returns clouds, float32, of shape
    `(num_clouds, num_points, 3)`, their labels (of a single class without classes) and those of their points or None.
    """
    clouds, classes, parts = arrays
    labels = (
        np.zeros(len(clouds), dtype=np.int64) if classes is None else check_labels(classes, num_classes, str(path))
    )
    if parts is not None and parts.max() >= MAX_PARTS:
        raise PointCloudError(f"{path}: {too_many_parts(int(parts.max()))}")
    if parts is not None and parts.min() < 0:
        parts = np.where(parts < 0, UNLABELLED, parts.astype(np.int64))
    # A copy where points are left out, so that these are freed.
    clouds = clouds[:, :first, :3].astype(np.float32, copy=first is not None and first < clouds.shape[1])
    if options.drop_invalid:
        for index in np.flatnonzero(~np.isfinite(clouds).all(axis=(1, 2))):
            # The shape of the array stays: other points of the cloud are repeated instead.
            valid = np.flatnonzero(np.isfinite(clouds[index]).all(axis=1))
            if len(valid) > 1:
                chosen = valid[np.arange(clouds.shape[1]) % len(valid)]
                clouds[index] = clouds[index][chosen]
                if parts is not None:
                    parts[index] = parts[index][chosen]
    bad = {
        "have NaN or infinite coordinates": ~np.isfinite(clouds).all(axis=(1, 2)),
        "have all their points in one place": (clouds == clouds[:, :1]).all(axis=(1, 2)),
    }
    for what, places in bad.items():
        if not places.any():
            continue
        reason = f"{path}: {int(places.sum())} of {len(places)} clouds {what}"
        if not options.skip_bad_files:
            more = ", drop_invalid=True such points" if "NaN" in what else ""
            raise PointCloudError(
                f"{reason}, the first is cloud {int(places.argmax())} (--skip_bad_files leaves such clouds out{more})"
            )
        warnings.warn(f"{reason}: they are skipped", stacklevel=2)
    good = ~np.logical_or(*bad.values())
    if good.all():
        return clouds, labels, parts
    return clouds[good], labels[good], None if parts is None else parts[good]


def join_arrays(
    read: Sequence[Arrays], names: Sequence[str], options: LoadOptions, sampling: str = "random"
) -> PointCloudDataset:
    """Make a data set of the clouds of some files, as `check_arrays` gives them."""
    clouds, labels, parts = zip(*read, strict=True)
    return PointCloudDataset(
        ConcatDataset(clouds),
        np.concatenate(labels),
        names,
        part_labels=None if parts[0] is None else ConcatDataset(parts),
        num_points=options.num_points,
        sampling=sampling,
        seed=options.seed,
    )
