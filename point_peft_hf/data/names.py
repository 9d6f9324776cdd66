"""What the names of files and folders say: classes, splits, attributes of clouds, and what other programs leave."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import PointCloudError
from .formats.columns import LABEL_NAMES

_SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating", "dev"), "validation"),
    # The test split, or the validation split where another folder is called test.
    **dict.fromkeys(("eval", "evaluation", "evaluate", "holdout"), "eval"),
}
# Words that say nothing about which split it is, alone or glued to its name: train_set, trainset, test_data.
_FILLERS = ("set", "sets", "data", "dataset", "datasets", "split", "folder", "files", "clouds", "samples", "points")
_GLUED = re.compile(f"({'|'.join(sorted(_SPLITS, key=len, reverse=True))})({'|'.join(_FILLERS)})?")
# Folders that systems and programs make; those that start with a dot or two underscores are left out as well.
_SIDE_FOLDERS = ("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin")
_SIDE_FOLDERS += ("system volume information", "lost+found")
_SIDE_FILES = ("readme", "license", "licence", "thumbs.db", "ehthumbs", "desktop.ini", "icon\r")
# What arrays and folders are called that hold coordinates, and those that hold something else about the same points.
COORDINATES = ("coord", "coords", "coordinates", "points", "point", "pts", "xyz", "pos", "position", "positions")
COORDINATES += ("velodyne", "cloud", "clouds", "pointcloud", "pointclouds")
LABELS = tuple(name for name in LABEL_NAMES if not name.startswith("scalar_"))
_ATTRIBUTES = {*LABELS, "color", "colors", "colour", "colours", "rgb", "normal", "normals", "strength", "intensity"}
_ATTRIBUTES |= {"intensities", "remission", "instance", "instances", "superpoint", "mask", "masks", "feat", "feature"}
_ATTRIBUTES |= {"feats", "features"}
_AS_ATTRIBUTE = re.compile(f"(.+)[-_. ]({'|'.join(sorted(_ATTRIBUTES, key=len, reverse=True))})")


def is_side_folder(name: str) -> bool:
    """Return whether a folder was left by a system or a program: `__MACOSX`, `.git`, Synology's `@eaDir`."""
    return name.startswith((".", "__")) or name.lower() in _SIDE_FOLDERS


def is_side_file(name: str) -> bool:
    """Return whether a file is hidden, a note of a release, or was left by a system: `._scan.ply`, `Thumbs.db`."""
    return name.lower().startswith((".", *_SIDE_FILES))


def printable(name: str | os.PathLike) -> str:
    """Give a path for messages, with an escape for each byte that is not UTF-8."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def class_name(folder: Path) -> str:
    """Give the class of a folder: its name as Linux and Windows compose it (NFC); archives of macOS decompose names.

    A name that is not UTF-8 is an error, as it could not be saved with a model.
    """
    try:
        folder.name.encode("utf-8")
    except UnicodeEncodeError:
        guess = os.fsencode(folder.name).decode("cp1252", errors="replace")
        raise PointCloudError(
            f"{printable(folder)}: the name of this folder is not UTF-8, so the class cannot be saved with a model; "
            f"rename it, to {guess!r} if it comes from an archive of Windows"
        ) from None
    return unicodedata.normalize("NFC", folder.name)


def looks_like(name: str) -> str:
    """Give a key that is the same for names which look the same: case, blanks and ways to write a letter aside."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 file, with or without byte order mark, stripped; empty ones are left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PointCloudError(
            f"{printable(path)}: is not UTF-8 (byte {error.start}: {error.object[error.start : error.start + 1]!r}); "
            "save it as UTF-8"
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _split_in(name: str) -> tuple[set[str], tuple[str, ...]]:
    """Find the splits that a name has words for, and its other words; numbers and words such as "set" are left out."""
    splits, rest = set(), []
    for word in re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)):
        word = word.casefold()
        glued = _GLUED.fullmatch(word)
        if glued:
            splits.add(_SPLITS[glued.group(1)])
        elif word in ("trainval", "valtrain"):
            splits |= {"train", "validation"}
        elif word not in _FILLERS:
            rest.append(word)
    if splits == {"train", "validation"}:  # not cut yet
        splits = {"train"}
    return splits, tuple(rest)


def split_of(name: str) -> str | None:
    """Give the split that a name says: train, test, validation or eval (either of the last two); None for no one."""
    splits = _split_in(name)[0]
    return next(iter(splits)) if len(splits) == 1 else None


def has_split_word(name: str) -> bool:
    """Return whether a name has a word for a split, whatever else is in it."""
    return bool(_split_in(name)[0])


def find_splits(folders: Sequence[Path]) -> dict[str, Path]:
    """Find the splits among the folders of one folder by their names; empty without a train split.

    Recognised are `train`, `Training`, `train_set`, `testset`, `val_data`, and names that agree but for the split, as
    `scans_train` and `scans_test`. Two folders of the same split are an error.
    """
    named = [(folder, *_split_in(folder.name)) for folder in folders]
    named = [(folder, next(iter(splits)), rest) for folder, splits, rest in named if len(splits) == 1]
    # "toy_train" can be a class, but not next to "toy_test".
    trained = {rest for _, split, rest in named if split == "train"}
    tested = {rest for _, split, rest in named if split != "train"}
    named = [(folder, split) for folder, split, rest in named if rest in trained and (not rest or rest in tested)]
    present = {split for _, split in named}
    found: dict[str, Path] = {}
    for folder, split in named if "train" in present else ():
        if split == "eval":
            split = "test" if "test" not in present else "validation"
        if split in found:
            raise PointCloudError(
                f"{printable(folder.parent)}: both {printable(found[split].name)!r} and {printable(folder.name)!r} "
                f"look like the {split} split; leave one of them, or join them"
            )
        found[split] = folder
    return found


def find_attributes(names: Iterable[str], only_of_coordinates: bool = False) -> set[str]:
    """Find which of the files or folders of one folder belong to another one of them: colours, normals, labels.

    Args:
        names: Names without ending, as `coord` and `color`, `points` and `points_label`, or `1` and `1_normals`.
        only_of_coordinates: Leave out those of other names than those of coordinates, as `1_normals`.
    """
    names = set(names)
    present = {name.lower() for name in names}
    coordinates = present & set(COORDINATES)

    def belongs(name: str) -> bool:
        match = _AS_ATTRIBUTE.fullmatch(name)
        if name.rstrip("0123456789") in _ATTRIBUTES or (match and match[1] in coordinates):
            return bool(coordinates)
        partners = () if match is None else (match[1], *(f"{match[1]}_{word}" for word in COORDINATES))
        return not only_of_coordinates and not present.isdisjoint(partners)

    return {name for name in names if belongs(name.lower())}


def is_attribute(name: str) -> bool:
    """Return whether a whole name is one of an attribute, as `color` or `normal`."""
    return name.lower() in _ATTRIBUTES
