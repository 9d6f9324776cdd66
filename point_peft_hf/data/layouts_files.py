"""Data sets of one file a cloud: a folder a class, ModelNet40 normal_resampled, ShapeNetPart as text."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from .dataset import PointCloudDataset, check_class_names
from .errors import PointCloudError
from .formats.text import holds_rows, read_table
from .layouts_hdf5 import parts_of_classes, read_names
from .part_files import LABEL_SUFFIX
from .readers import READERS, errors_of
from .sources import LoadOptions, open_files, read_cloud, require_files

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
}
# What lies beside clouds and meshes without being one.
_BESIDE = {
    LABEL_SUFFIX,
    ".mtl",
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".tga",
    ".tif",
    ".tiff",
    ".json",
    ".yaml",
    ".yml",
    ".md",
}
_BESIDE_NAMES = ("readme", "license", "licence", "thumbs.db", "desktop.ini")
# Clouds by their ending, but as often notes, lists of files or tables of labels.
_TEXT_OR_NOTES = (".txt", ".csv")


def subfolders(path: Path) -> list[Path]:
    """List the subfolders that count."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def find_folders(path: Path) -> Path | None:
    """Tell whether a folder has subfolders, which are then its splits or classes."""
    folders = subfolders(path)
    if len(folders) == 1 and folders[0].name.lower() not in SPLIT_NAMES and not has_files(folders[0]):
        return find_folders(folders[0])  # an archive unpacked into a folder of its own
    return path if folders else None


def has_files(path: Path) -> bool:
    """Tell whether there are clouds in a folder itself; notes and tables above folders of clouds are none."""
    clouds = [entry for entry in path.iterdir() if entry.is_file() and _is_cloud(entry)]
    if any(entry.suffix.lower() not in _TEXT_OR_NOTES for entry in clouds):
        return True
    if not clouds or not any(_holds_clouds(folder) for folder in subfolders(path)):
        return bool(clouds)
    return len([entry for entry in clouds if holds_rows(entry)]) > 1


def _holds_clouds(folder: Path) -> bool:
    """Tell whether there are clouds in a folder or in the folders in it."""
    return any(_is_cloud(Path(name)) for _, _, names in os.walk(folder) for name in names)


def _is_cloud(path: Path) -> bool:
    """Tell by its name whether a file is a cloud."""
    return path.suffix.lower() in READERS and not _is_beside(path)


def _is_beside(path: Path) -> bool:
    """Tell by its name whether a file lies beside clouds without being one."""
    name = path.name.lower()
    return name.startswith((".", *_BESIDE_NAMES)) or path.suffix.lower() in _BESIDE


def load_folders(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load a folder a class; train and test folders above the classes, below them (ModelNet40 as .off), or neither."""
    return load_classes(find_classes(root, options), root, options, _dataset)


def load_classes(
    found: dict[str, dict[str, list[Path]]],
    root: Path,
    options: LoadOptions,
    make_dataset: Callable[[list[Path], list[int], list[str], Path, LoadOptions], PointCloudDataset],
) -> dict[str, PointCloudDataset]:
    """Make a data set of each split of what `find_classes` has found.

    Args:
        found: The files of each class of each split.
        root: Folder of the data set.
        options: How to load.
        make_dataset: Makes a data set of files, their labels, and the names of the classes.

    Returns:
        Data sets by split.

    Raises:
        PointCloudError: If a class has no file, or none to learn from.
    """
    names = check_class_names(sorted({name for classes in found.values() for name in classes}), str(root))
    counts = Counter()
    for classes in found.values():
        counts.update({name: len(files) for name, files in classes.items()})
    empty = [name for name in names if counts[name] == 0]
    if empty:
        reason = (
            f"{root}: the class folder {empty[0]!r} has no readable file; readable are {', '.join(sorted(READERS))}"
        )
        if not options.files.skip_bad_files or len(empty) == len(names):
            raise PointCloudError(f"{reason} (skip_bad_files=True leaves such classes out)")
        warnings.warn(f"{root}: {len(empty)} class folders without a readable file are skipped: {empty}", stacklevel=2)
        names = [name for name in names if counts[name]]
    strange = [name for name in names if "train" in found and not found["train"].get(name)]
    if strange:
        raise PointCloudError(
            f"{root}: the class {strange[0]!r} has no cloud in train, so it cannot be learnt; add some"
        )
    splits = {}
    for split, classes in found.items():
        files = [file for name in names for file in classes.get(name, [])]
        labels = [label for label, name in enumerate(names) for _ in classes.get(name, [])]
        if files:
            splits[split] = make_dataset(files, labels, names, root, options)
    return splits


def find_classes(root: Path, options: LoadOptions) -> dict[str, dict[str, list[Path]]]:
    """Find the files of each class of each split; the key is "" when there are no splits."""
    folders = subfolders(root)
    splits: dict[str, Path] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split in splits:
            raise PointCloudError(
                f"{root}: both {splits[split].name!r} and {folder.name!r} look like the {split} split"
            )
        if split:
            splits[split] = folder
    if "train" in splits:
        if len(splits) < len(folders):
            others = [folder.name for folder in folders if folder not in splits.values()]
            warnings.warn(
                f"{root}: beside the splits {sorted(splits)}, the folders {others} are ignored", stacklevel=2
            )
        found = {split: {folder.name: [folder] for folder in subfolders(path)} for split, path in splits.items()}
    elif all({"train", "test"} <= {inner.name.lower() for inner in subfolders(folder)} for folder in folders):
        found = {"train": {}, "test": {}}
        for folder in folders:
            for inner in subfolders(folder):
                split = SPLIT_NAMES.get(inner.name.lower())
                if split:
                    found.setdefault(split, {})[folder.name] = [inner]
    else:
        found = {"": {folder.name: [folder] for folder in folders}}
    strange: list[Path] = []
    files = {
        split: {name: _list_files(paths[0], strange, options) for name, paths in classes.items()}
        for split, classes in found.items()
    }
    if strange:
        _report_strange(strange, root, options)
    if not any(files.values()):
        raise PointCloudError(f"{root}: the splits {sorted(files)} have no class folders in them")
    return files


def list_clouds(folder: Path, root: Path, options: LoadOptions) -> list[Path]:
    """List the clouds in a folder and the folders in it; other files are refused, or left out with a warning."""
    strange: list[Path] = []
    files = _list_files(folder, strange, options)
    if strange:
        _report_strange(strange, root, options)
    return files


def _list_files(folder: Path, strange: list[Path], options: LoadOptions) -> list[Path]:
    """List the clouds of a class folder and the folders in it; other files are added to `strange`."""
    files: list[Path] = []

    def fail(error: OSError) -> None:
        if not options.files.skip_bad_files:
            raise PointCloudError(
                f"{error.filename}: the folder cannot be read: {error.strerror} (skip_bad_files=True leaves it out)"
            )
        warnings.warn(f"{error.filename}: the folder cannot be read and is skipped: {error.strerror}", stacklevel=2)

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(names):
            path = Path(parent, name)
            if _is_beside(path):
                continue
            (files if path.suffix.lower() in READERS else strange).append(path)
    return files


def _report_strange(strange: list[Path], root: Path, options: LoadOptions) -> None:
    endings = ", ".join(sorted({path.suffix or "no ending" for path in strange}))
    if not options.files.skip_bad_files:
        raise PointCloudError(
            f"{strange[0]}: files of this kind are not read ({len(strange)} such under {root}: {endings}); readable "
            f"are {', '.join(sorted(READERS))} (skip_bad_files=True leaves others out)"
        )
    warnings.warn(f"{root}: {len(strange)} files of other kinds are skipped: {endings}", stacklevel=2)


def _dataset(
    files: list[Path], labels: list[int], names: list[str], root: Path, options: LoadOptions, sampling: str = "random"
) -> PointCloudDataset:
    reader = partial(read_cloud, num_points=options.num_points, seed=options.seed, drop_invalid=options.drop_invalid)
    clouds, kept = open_files(files, root, reader, options.files)
    return PointCloudDataset(
        clouds,
        np.array(labels, dtype=np.int64)[kept],
        names,
        num_points=options.num_points,
        sampling=sampling,
        seed=options.seed,
    )


def load_modelnet40_normal(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load the layout of modelnet40_normal_resampled, or its ModelNet10 lists when those are the only ones."""
    prefix = "modelnet40" if (root / "modelnet40_train.txt").exists() else "modelnet10"
    names = read_names(root / f"{prefix}_shape_names.txt")
    listed = {}
    for split in ("train", "test"):
        listing = root / f"{prefix}_{split}.txt"
        shapes = [line.strip() for line in listing.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        classes = [shape.rpartition("_")[0] for shape in shapes]
        unknown = sorted(set(classes) - set(names))
        if unknown or not shapes:
            raise PointCloudError(
                f"{listing}: names shapes of the class {unknown[:1]}, which {prefix}_shape_names.txt lacks"
            )
        files = [root / name / f"{shape}.txt" for name, shape in zip(classes, shapes, strict=True)]
        listed[split] = files, [names.index(name) for name in classes]
    require_files([file for files, _ in listed.values() for file in files], options.files)
    # The points of the release are ordered so that the first ones cover the shape.
    return {split: _dataset(files, labels, names, root, options, "first") for split, (files, labels) in listed.items()}


def load_shapenetpart_txt(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load the text release of ShapeNetPart: rows of x y z, normal, part."""
    listing = root / "synsetoffset2category.txt"
    rows = [line.split() for line in listing.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if any(len(row) < 2 for row in rows):
        raise PointCloudError(f"{listing}: expected a name and a number in each line")
    names = check_class_names([row[0] for row in rows], str(listing))
    codes = {row[1]: label for label, row in enumerate(rows)}
    listed, opened, labels = {}, {}, {}
    for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
        path = root / "train_test_split" / f"shuffled_{short}_file_list.json"
        if split == "validation" and not path.exists():
            continue
        try:
            shapes = [Path(entry).parts[-2:] for entry in json.loads(path.read_text())]
        except (ValueError, TypeError) as error:
            raise PointCloudError(f"{path}: cannot be read as a list of shapes: {error}") from None
        unknown = sorted({shape[0] for shape in shapes} - set(codes))
        if unknown or not shapes:
            raise PointCloudError(f"{path}: names shapes of the category {unknown[:1]}, which {listing.name} lacks")
        files = [root / code / f"{shape}.txt" for code, shape in shapes]
        listed[split] = files, np.array([codes[code] for code, _ in shapes], dtype=np.int64)
    require_files([file for files, _ in listed.values() for file in files], options.files)
    reader = partial(read_part_cloud, drop_invalid=options.drop_invalid)
    for split, (files, all_labels) in listed.items():
        opened[split], kept = open_files(files, root, reader, options.files)
        labels[split] = all_labels[kept]
    pairs = [
        (labels[split][index : index + 1], clouds[index][None, :, 3].astype(np.int64))
        for split, clouds in opened.items()
        for index in range(len(clouds))
    ]
    class_parts = parts_of_classes(pairs, len(names))
    return {
        split: PointCloudDataset(
            clouds, labels[split], names, num_points=options.num_points, seed=options.seed, class_parts=class_parts
        )
        for split, clouds in opened.items()
    }


def read_part_cloud(path: Path, drop_invalid: bool) -> np.ndarray:
    """Read a text file of points with a part each.

    Args:
        path: The file: rows of x, y, z, anything, and the part in the last column.
        drop_invalid: Leave out points with NaN or infinite coordinates.

    Returns:
        Array of shape `(num_points, 4)`: x, y, z and the part, float32.

    Raises:
        PointCloudError: If the file is broken or the parts are not whole numbers.
    """
    if not path.is_file():
        raise PointCloudError(f"{path}: no such file")
    with errors_of(path):
        table = read_table(path)
    if table.shape[1] < 4:
        raise PointCloudError(f"{path}: needs x, y, z and a part in the last column, got {table.shape[1]} columns")
    table = table[:, [0, 1, 2, -1]]
    finite = np.isfinite(table).all(axis=1)
    if drop_invalid:
        table = table[finite]
    elif not finite.all():
        raise PointCloudError(f"{path}: {int((~finite).sum())} of {len(table)} rows have NaN or infinite values")
    if len(table) < 2:
        raise PointCloudError(f"{path}: holds {len(table)} points; a cloud has at least 2")
    if (table[:, 3] != np.round(table[:, 3])).any() or table[:, 3].min() < 0:
        raise PointCloudError(
            f"{path}: the last column must be the number of a part, got {table[:, 3].min()} and others"
        )
    return table.astype(np.float32)
