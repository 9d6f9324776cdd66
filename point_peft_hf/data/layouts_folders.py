"""Data sets of one file a cloud, in a folder a class, also with a label for each point."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import PointCloudDataset, check_class_names, find_class_parts
from .errors import PointCloudError
from .folder_tree import CloudFinder, has_files, holds_clouds, is_scene, subfolders
from .names import (
    COORDINATES,
    class_name,
    find_attributes,
    find_splits,
    has_split_word,
    is_attribute,
    printable,
    read_lines,
)
from .part_files import find_label_file, read_labelled_cloud
from .readers import READERS
from .sources import LoadOptions, open_files, read_cloud

# The folder of each class of each split; the split is "" when there are none.
ClassFolders = dict[str, dict[str, Path]]
ClassFiles = dict[str, dict[str, list[Path]]]
NAMES_FILE = "parts.txt"


def find_folders(path: Path) -> Path | None:
    """Give the folder whose subfolders are splits or classes; None if there are no subfolders."""
    folders = subfolders(path)
    if len(folders) == 1 and not has_split_word(folders[0].name) and not has_files(folders[0]):
        return find_folders(folders[0])  # an archive unpacked into a folder of its own
    return path if folders else None


def load_folders(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load a folder a class; train and test folders above the classes, below them (ModelNet40 as .off), or neither."""
    finder = CloudFinder(root, options)
    return _open_classes(_list_classes(_find_classes(root), finder), root, options)


def _find_classes(root: Path) -> ClassFolders:
    """Find the splits and the classes among the folders of a folder; an error where it can be either."""
    folders = subfolders(root)
    belonging = find_attributes([folder.name for folder in folders], only_of_coordinates=True)
    if belonging or any(map(is_scene, folders)):
        name = printable(next(folder for folder in folders if folder.name in belonging or is_scene(folder)).name)
        raise PointCloudError(
            f"{printable(root)}: its folder {name!r} is not a class: it holds one cloud, or what belongs to the "
            "clouds of the folder next to it; put the clouds of each class in a folder of the name of the class"
        )
    splits = find_splits(folders)
    if splits and _splits_are_classes(splits, folders, root):
        splits = {}
    if splits:
        _report_others(root, splits, folders)
        found = {split: _by_class(subfolders(path), path) for split, path in splits.items()}
        if not any(found.values()):
            raise PointCloudError(
                f"{printable(root)}: the splits {sorted(path.name for path in splits.values())} have no class folders "
                "in them"
            )
        return found
    inner = {folder: find_splits(subfolders(folder)) for folder in folders}
    if any(len(found) > 1 for found in inner.values()):
        return _splits_below(root, inner)
    _refuse_unnamed_splits(root, folders)
    if has_files(root):
        warnings.warn(
            f"{printable(root)}: clouds next to the folders of the classes belong to no class, and are left out",
            stacklevel=2,
        )
    lists = [entry.name for entry in root.iterdir() if entry.suffix.lower() == ".txt" and has_split_word(entry.stem)]
    if lists:
        warnings.warn(
            f"{printable(root)}: the lists {sorted(map(printable, lists))} are not used; for the splits that they "
            "name move the clouds to folders train and test",
            stacklevel=2,
        )
    return {"": _by_class(folders, root)}


def _by_class(folders: list[Path], where: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        other = found.setdefault(class_name(folder), folder)
        if other != folder:
            raise PointCloudError(
                f"{printable(where)}: the folders {ascii(other.name)} and {ascii(folder.name)} look the same, "
                f"{class_name(folder)!r}, but their letters are written in two ways (archives of macOS do that); "
                "join them"
            )
    return found


def _splits_are_classes(splits: dict[str, Path], folders: list[Path], root: Path) -> bool:
    """Return whether a folder called train is one of vehicles: it holds clouds itself, and so do others."""
    others = [folder for folder in folders if folder not in splits.values()]
    if len(splits) > 1 or not any(map(has_files, others)):
        return False
    if has_files(splits["train"]):
        return True
    raise PointCloudError(
        f"{printable(root)}: is {splits['train'].name!r} the training split, or a class like {others[0].name!r}? For "
        "splits move the clouds to train/CLASS and test/CLASS; for a class move them out of the folders in it"
    )


def _report_others(root: Path, splits: dict[str, Path], folders: list[Path]) -> None:
    """Warn of folders next to the splits; refuse those that look like splits, and clouds of no class in splits."""
    names = [printable(folder.name) for folder in folders if folder not in splits.values()]
    doubtful = next((name for name in names if has_split_word(name)), None)
    if doubtful:
        raise PointCloudError(
            f"{printable(root)}: is {doubtful!r} a split, as {splits['train'].name!r} is? Call splits train, "
            "validation and test, and move other folders away"
        )
    for path in splits.values():
        if subfolders(path) and has_files(path):
            raise PointCloudError(
                f"{printable(path)}: holds clouds next to the folders of its classes; move each into that of its class"
            )
    if names:
        warnings.warn(
            f"{printable(root)}: next to the splits {sorted(splits)}, the folders {names} are ignored", stacklevel=2
        )


def _splits_below(root: Path, inner: dict[Path, dict[str, Path]]) -> ClassFolders:
    """Sort splits that are in the folders of the classes."""
    found: ClassFolders = {}
    for folder, splits in inner.items():
        others = [entry.name for entry in subfolders(folder) if entry not in splits.values()]
        if "train" not in splits or others or has_files(folder):
            raise PointCloudError(
                f"{printable(folder)}: other classes have folders for their splits, and clouds nowhere else; this one "
                f"has {sorted(splits) or 'no splits'}{f' and {others}' if others else ''}"
                f"{' and clouds' if has_files(folder) else ''}"
            )
        for split, path in splits.items():
            if class_name(folder) in found.setdefault(split, {}):
                _by_class(list(inner), root)
            found[split][class_name(folder)] = path
    return found


def _refuse_unnamed_splits(root: Path, folders: list[Path]) -> None:
    """Refuse folders that all hold folders of the same names: splits of classes, or classes of splits?"""
    inner = [{entry.name for entry in subfolders(folder) if _may_be_class(entry)} for folder in folders]
    if len(folders) < 2 or not all(inner) or any(map(has_files, folders)):
        return
    shared = sorted(set.intersection(*inner))
    # Numbered folders (batch1, 0001) are parts of one thing.
    if len(shared) > 1 and not any(character.isdigit() for name in shared for character in name):
        raise PointCloudError(
            f"{printable(root)}: are {printable(folders[0].name)!r} and {printable(folders[1].name)!r} classes, or "
            f"splits of the classes {', '.join(map(repr, map(printable, shared[:5])))}, which both hold? Call splits "
            "train and test; move the clouds of classes out of the folders in them, or number these (batch1, batch2)"
        )


def _may_be_class(folder: Path) -> bool:
    """Return whether a folder in one that may be a split can be a class: neither one cloud nor named as a part."""
    name = folder.name.lower()
    return holds_clouds(folder) and name not in COORDINATES and not is_attribute(name) and not is_scene(folder)


def _list_classes(found: ClassFolders, finder: CloudFinder) -> ClassFiles:
    files = {
        split: {
            name: finder.list(folder, f"class {name!r}" + (f" of {split}" if split else ""))
            for name, folder in classes.items()
        }
        for split, classes in found.items()
    }
    finder.report()
    return files


def _open_classes(found: ClassFiles, root: Path, options: LoadOptions, **how: Any) -> dict[str, PointCloudDataset]:
    """Make a data set of each split, as `open_dataset`; a class needs a file, and one to train on."""
    names = check_class_names(sorted({name for classes in found.values() for name in classes}), str(root))
    counts = Counter()
    for classes in found.values():
        counts.update({name: len(files) for name, files in classes.items()})
    empty = [name for name in names if counts[name] == 0]
    if empty:
        reason = (
            f"{root}: the class folder {empty[0]!r} has no readable file; readable are {', '.join(sorted(READERS))}"
        )
        if not options.skip_bad_files or len(empty) == len(names):
            raise PointCloudError(f"{reason} (--skip_bad_files leaves such classes out)")
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
            splits[split] = open_dataset(files, labels, names, root, options, **how)
    return splits


def open_dataset(
    files: list[Path],
    labels: list[int],
    names: list[str],
    root: Path,
    options: LoadOptions,
    *,
    reader: Callable[[Path], np.ndarray] | None = None,
    find_labels: Callable[[Path], Path | None] | None = None,
    sampling: str = "random",
) -> PointCloudDataset:
    """Make a data set of files, one a cloud, with their labels and the names of the classes.

    `reader` (by default `read_cloud`) and `find_labels` are as in `open_files`; `root` is the folder of the data set.
    """
    if reader is None:
        reader = partial(
            read_cloud, num_points=options.num_points, seed=options.seed, drop_invalid=options.drop_invalid
        )
    clouds, kept = open_files(files, root, reader, options, find_labels)
    labels = np.array(labels, dtype=np.int64)[kept]
    return PointCloudDataset(
        clouds, labels, names, num_points=options.num_points, sampling=sampling, seed=options.seed
    )


def find_part_folder(path: Path) -> Path | None:
    """Give the folder with clouds, names of parts, or subfolders for its splits or categories."""
    return path if has_files(path) or (path / NAMES_FILE).is_file() else find_folders(path)


def load_part_folder(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load clouds with a label for each point, a folder a category, or all in one folder.

    Train and test folders may be above the categories, below them, or hold the clouds of the only category. A number
    means the same part in every category. `parts.txt` in the root names the parts, one a line, from 0 on.
    """
    reader = partial(read_labelled_cloud, drop_invalid=options.drop_invalid)
    splits = _open_classes(_find_categories(root, options), root, options, reader=reader, find_labels=find_label_file)
    class_parts = find_class_parts(splits.values(), str(root))
    names_file, part_names = root / NAMES_FILE, None
    if names_file.is_file():
        part_names = read_lines(names_file)
        num_parts = 1 + max(map(max, class_parts))
        if len(part_names) < num_parts:
            raise PointCloudError(
                f"{names_file}: has {len(part_names)} names, but the labels go up to {num_parts - 1}; write a name "
                "for each part from 0 on, one a line"
            )
        for number, name in enumerate(part_names):
            if name in part_names[:number]:
                raise PointCloudError(
                    f"{names_file}: {name!r} is the name of part {part_names.index(name)} and of part {number}; give "
                    "each part a name of its own"
                )
    for dataset in splits.values():
        dataset.set_parts(class_parts, part_names)
    return splits


def _find_categories(root: Path, options: LoadOptions) -> ClassFiles:
    """Find the files of each category of each split; a folder that holds clouds itself is the only category."""
    finder = CloudFinder(root, options)
    folders = subfolders(root)
    splits = find_splits(folders)
    if splits and (has_files(splits["train"]) or _is_category(splits["train"])):
        places = splits
    elif folders and not _is_category(root):
        return _list_classes(_find_classes(root), finder)
    else:
        places = {"": root}
    category = class_name(Path(os.path.abspath(root))) or "object"
    files = {
        split: {category: [file for file in finder.list(folder, split or category) if file != root / NAMES_FILE]}
        for split, folder in places.items()
    }
    finder.report()
    return files


def _is_category(folder: Path) -> bool:
    """Return whether a folder holds clouds itself: as files, as folders of arrays, or with folders of their labels."""
    folders = subfolders(folder)
    paired = find_attributes([entry.name for entry in folders], only_of_coordinates=True)
    return not folders or bool(paired) or any(map(is_scene, folders))
