"""Data sets of your own as arrays of many clouds: .h5 and .npz files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .dataset import MAX_PARTS, PointCloudDataset, check_labels, too_many_parts
from .errors import PointCloudError
from .folder_tree import subfolders
from .formats.arrays import open_h5, read_h5_array
from .layouts_hdf5 import JoinedClouds, drop_bad_clouds, parts_of_classes, read_names
from .names import COORDINATES, is_side_file, printable, split_of
from .readers import errors_of
from .sources import LoadOptions

ARRAY_SUFFIXES = (".h5", ".hdf5", ".npz")
_CLOUDS = (*COORDINATES, "data", "x", "arr_0")
_CLASSES = (
    "label",
    "labels",
    "y",
    "class",
    "classes",
    "class_id",
    "category",
    "categories",
    "target",
    "targets",
    "cls",
)
_PARTS = ("pid", "part", "parts", "part_label", "part_labels", "seg", "segment", "segmentation", "semantic")
_NAME_LISTS = ("shape_names.txt", "class_names.txt", "classes.txt", "categories.txt")
_MAX_COLUMNS = 16
Arrays = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]


def find_arrays(path: Path) -> Path | None:
    """Tell whether a file, or the first such file in a folder, is one of many clouds."""
    files = _files(path)
    folders = [] if files or path.is_file() else subfolders(path)
    if len(folders) == 1:
        return find_arrays(folders[0])  # an archive unpacked into a folder of its own
    if not files:
        return None
    try:
        shapes = _shapes(files[0])
    except (PointCloudError, ImportError):  # of one cloud, or broken: for the reader of clouds to say
        return None
    return path if any(len(shape) == 3 and shape[0] > 1 for shape in shapes.values()) else None


def _files(path: Path) -> list[Path]:
    entries = [path] if path.is_file() else sorted(path.iterdir())
    return [
        entry
        for entry in entries
        if entry.suffix.lower() in ARRAY_SUFFIXES and entry.is_file() and not is_side_file(entry.name)
    ]


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Give the shapes of the arrays of a file, in which only the headers are read of .h5 files."""
    with errors_of(path):
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name].shape for name in archive.files}
        with open_h5(path) as file:
            return {name: getattr(file[name], "shape", None) or () for name in file}


def load_arrays(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load files of many clouds; `train` and `test` in their names are the splits.

    A file has an array of clouds of shape `(num_clouds, num_points, 3 or more)`, called points, coord, data or the
    like, and one of classes, called label or the like; with parts also a label for each point, called pid, seg or the
    like. Labels of points alone are parts of one category. shape_names.txt or classes.txt names the classes.
    """
    read: dict[str, list[tuple[Path, Arrays]]] = {}
    for file in _files(root):
        read.setdefault(split_of(file.stem) or "", []).append((file, _read(file)))
    if "eval" in read:
        read["test" if "test" not in read else "validation"] = read.pop("eval")
    if len(read) > 1 and ("" in read or "train" not in read):
        odd = read.get("", next(iter(read.values())))[0][0]
        raise PointCloudError(
            f"{printable(odd)}: to which split do its clouds belong? Other files here are {sorted(read)}; "
            "write train, validation or test into the name, or move the file away"
        )
    names = _class_names(root, [arrays for files in read.values() for _, arrays in files])
    kept = {
        split: [_checked(file, arrays, names, options) for file, arrays in read[split]]
        for split in ("", "train", "validation", "test")
        if split in read
    }
    everything = [arrays for files in kept.values() for arrays in files]
    has_parts = [parts is not None for _, _, parts in everything]
    class_parts = None
    if all(has_parts):
        class_parts = parts_of_classes([(labels, parts) for _, labels, parts in everything], len(names))
        class_parts = [[part for part in parts if part >= 0] for parts in class_parts]
        if not all(class_parts):
            raise PointCloudError(
                f"{printable(root)}: no point of {names[class_parts.index([])]!r} has a label of 0 or above"
            )
    elif any(has_parts):
        raise PointCloudError(f"{printable(root)}: some files have a label for each point, others do not")
    return {
        split: PointCloudDataset(
            JoinedClouds([clouds for clouds, _, _ in files]),
            np.concatenate([labels for _, labels, _ in files]),
            names,
            part_labels=None if class_parts is None else JoinedClouds([parts for _, _, parts in files]),
            num_points=options.num_points,
            seed=options.seed,
            class_parts=class_parts,
        )
        for split, files in kept.items()
    }


def _read(path: Path) -> Arrays:
    """Read clouds, classes and parts of a file, the last two None where it has none."""
    shapes = _shapes(path)
    large = [name for name, shape in shapes.items() if len(shape) == 3]
    clouds = _one_of(path, shapes, large, _CLOUDS, "clouds, of shape (num_clouds, num_points, 3)", required=True)
    num_clouds, num_points, columns = shapes[clouds]
    if not 3 <= columns <= _MAX_COLUMNS or num_points < 2:
        raise PointCloudError(
            f"{path}: {clouds!r} must be of shape (num_clouds, num_points, 3), got {shapes[clouds]}"
            + ("; it looks transposed, coordinates come last" if num_points in range(3, _MAX_COLUMNS) else "")
        )
    per_cloud = [name for name, shape in shapes.items() if shape in ((num_clouds,), (num_clouds, 1))]
    per_point = [name for name, shape in shapes.items() if shape[:2] == (num_clouds, num_points) and name != clouds]
    per_point = [name for name in per_point if len(shapes[name]) == 2 or shapes[name][2:] == (1,)]
    classes = _one_of(path, shapes, per_cloud, _CLASSES, "classes")
    parts = _one_of(path, shapes, per_point, (*_PARTS, *_CLASSES), "labels of points")
    if classes is None and parts is None:
        raise PointCloudError(
            f"{path}: has no labels: an array called label, of shape ({num_clouds},); it has {shapes}"
        )
    loaded = []
    with errors_of(path):
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                loaded = [None if name is None else archive[name] for name in (clouds, classes, parts)]
        else:
            with open_h5(path) as file:
                loaded = [None if n is None else read_h5_array(file, n, path) for n in (clouds, classes, parts)]
    points, classes, parts = loaded
    if points.dtype.kind not in "fiu":
        raise PointCloudError(f"{path}: {clouds!r} must be of real numbers, got {points.dtype}")
    return points, classes, None if parts is None else parts.reshape(num_clouds, num_points)


def _one_of(
    path: Path, shapes: dict, candidates: list[str], names: tuple[str, ...], what: str, required: bool = False
) -> str | None:
    """Choose an array by its name."""
    found = [name for name in candidates if name.lower() in names]
    if len(found) == 1:
        return found[0]
    if found or required:
        got = f"both {found[0]!r} and {found[1]!r} can be that" if found else f"it has {shapes}"
        raise PointCloudError(f"{path}: needs one array of {what}, called {', '.join(names[:3])} or the like; {got}")
    return None


def _class_names(root: Path, read: list[Arrays]) -> list[str]:
    folder = root if root.is_dir() else root.parent
    lists = [folder / name for name in _NAME_LISTS if (folder / name).is_file()]
    if len(lists) > 1:
        raise PointCloudError(f"{printable(folder)}: both {lists[0].name} and {lists[1].name} name classes; keep one")
    if lists:
        return read_names(lists[0])
    if all(classes is None for _, classes, _ in read):
        return [folder.name or "object"]
    highest = max(float(np.max(classes)) for _, classes, _ in read if classes is not None)
    if not highest < MAX_PARTS:
        raise PointCloudError(
            f"{printable(root)}: classes are numbered from 0 on, got {highest:.0f}; number them anew, or name them in "
            f"{folder / _NAME_LISTS[0]}"
        )
    return [str(number) for number in range(int(highest) + 1)]


def _checked(path: Path, arrays: Arrays, names: list[str], options: LoadOptions) -> Arrays:
    """Check the arrays of a file, and leave out what is asked for."""
    clouds, classes, parts = arrays
    labels = np.zeros(len(clouds), dtype=np.int64) if classes is None else check_labels(classes, len(names), str(path))
    if parts is not None:
        if parts.dtype.kind not in "iu":
            raise PointCloudError(f"{path}: labels of points must be integers, got {parts.dtype}")
        if parts.max() >= MAX_PARTS:
            raise PointCloudError(f"{path}: {too_many_parts(int(parts.max()))}")
        parts = np.where(parts < 0, -100, parts).astype(np.int64)
    points = clouds[:, :, :3].astype(np.float32)
    return drop_bad_clouds(path, points, labels, parts, options)
