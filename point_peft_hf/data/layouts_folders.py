"""Data sets of one file a cloud, in a folder a class."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from .dataset import PointCloudDataset, check_class_names
from .errors import PointCloudError
from .folder_tree import CloudFinder, has_files, holds_clouds, is_scene, subfolders
from .names import COORDINATES, class_name, find_attributes, find_splits, has_split_word, is_attribute, printable
from .readers import READERS
from .sources import LoadOptions, open_files, read_cloud

# The folder of each class of each split; the split is "" when there are none.
ClassFolders = dict[str, dict[str, Path]]


def find_folders(path: Path) -> Path | None:
    """Tell whether a folder has subfolders, which are then its splits or classes."""
    folders = subfolders(path)
    if len(folders) == 1 and not has_split_word(folders[0].name) and not has_files(folders[0]):
        return find_folders(folders[0])  # an archive unpacked into a folder of its own
    return path if folders else None


def load_folders(root: Path, options: LoadOptions) -> dict[str, PointCloudDataset]:
    """Load a folder a class; train and test folders above the classes, below them (ModelNet40 as .off), or neither."""
    finder = CloudFinder(root, options)
    return load_classes(list_classes(find_classes(root), finder), root, options, files_dataset)


def find_classes(root: Path) -> ClassFolders:
    """Find the splits and the classes among the folders of a folder.

    Args:
        root: The folder.

    Returns:
        The folder of each class of each split; the split is "" when there are none.

    Raises:
        PointCloudError: If it cannot be said what is a split and what a class.
    """
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
            f"{printable(root)}: clouds that lie beside the folders of the classes belong to none, and are left out",
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
    """Tell whether a folder called train is one of vehicles: it holds clouds itself, and so do others.

    Raises:
        PointCloudError: If it can be either.
    """
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
    """Warn of folders beside the splits; refuse those that look like splits, and clouds of no class in splits."""
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
                f"{printable(path)}: holds clouds beside the folders of its classes; to which class do they belong?"
            )
    if names:
        warnings.warn(
            f"{printable(root)}: beside the splits {sorted(splits)}, the folders {names} are ignored", stacklevel=2
        )


def _splits_below(root: Path, inner: dict[Path, dict[str, Path]]) -> ClassFolders:
    """Sort splits that lie in the folders of the classes."""
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
    """Tell whether a folder in one that may be a split can be a class: it is neither one cloud nor named as a part."""
    name = folder.name.lower()
    return holds_clouds(folder) and name not in COORDINATES and not is_attribute(name) and not is_scene(folder)


def list_classes(found: ClassFolders, finder: CloudFinder) -> dict[str, dict[str, list[Path]]]:
    """List the files of each class of each split.

    Args:
        found: What `find_classes` has found.
        finder: Lists the clouds.

    Returns:
        The files.

    Raises:
        PointCloudError: As `CloudFinder`.
    """
    files = {
        split: {
            name: finder.list(folder, f"class {name!r}" + (f" of {split}" if split else ""))
            for name, folder in classes.items()
        }
        for split, classes in found.items()
    }
    finder.report()
    return files


def load_classes(
    found: dict[str, dict[str, list[Path]]],
    root: Path,
    options: LoadOptions,
    make_dataset: Callable[[list[Path], list[int], list[str], Path, LoadOptions], PointCloudDataset],
) -> dict[str, PointCloudDataset]:
    """Make a data set of each split of what `list_classes` has found.

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


def files_dataset(
    files: list[Path], labels: list[int], names: list[str], root: Path, options: LoadOptions, sampling: str = "random"
) -> PointCloudDataset:
    """Make a data set of files, of which an item has the points that `sampling` leaves."""
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
