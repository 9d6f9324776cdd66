"""Which files of a tree of folders are clouds, each counted once."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

from .errors import PointCloudError
from .formats.text import holds_rows
from .names import COORDINATES, find_attributes, is_attribute, is_side_file, is_side_folder, printable
from .readers import READERS
from .sources import LoadOptions

LABEL_SUFFIXES = (".seg", ".label", ".labels")
# Files next to clouds and meshes that are neither.
_BESIDE = {*LABEL_SUFFIXES, ".mtl", ".png", ".jpg", ".jpeg", ".bmp", ".tga", ".tif", ".tiff"}
_BESIDE |= {".json", ".yaml", ".yml", ".md"}
# Clouds by their ending, but as often notes, lists of files or tables of labels.
_TEXT_OR_NOTES = (".txt", ".csv")
_ARRAYS = (".npy", ".txt", ".csv")
# Folders of these names hold objects, in one format, that may be in other folders in another.
_FORMAT_FOLDERS = {*(suffix[1:] for suffix in READERS), "mesh", "meshes", "cloud", "clouds", "pointcloud"}
_FORMAT_FOLDERS |= {"pointclouds", "point_clouds", "points", "models"}


def subfolders(path: Path) -> list[Path]:
    """List the subfolders that count."""
    return sorted(
        path / entry.name for entry in _entries(path) if _is_folder(entry) and not is_side_folder(entry.name)
    )


def has_files(path: Path) -> bool:
    """Return whether there are clouds in a folder itself; notes and tables above folders of clouds do not count."""
    files = [path / entry.name for entry in _entries(path) if not _is_folder(entry)]
    clouds = [file for file in files if _is_cloud(file) and file.is_file()]
    if any(entry.suffix.lower() not in _TEXT_OR_NOTES for entry in clouds):
        return True
    if not clouds or not any(holds_clouds(folder) for folder in subfolders(path)):
        return bool(clouds)
    return len([entry for entry in clouds if holds_rows(entry)]) > 1


def holds_clouds(folder: Path) -> bool:
    """Return whether there are clouds in a folder or in the folders in it."""
    return any(_is_cloud(Path(name)) for _, _, names in os.walk(folder) for name in names)


def is_scene(folder: Path) -> bool:
    """Return whether a folder is one cloud, arrays of coordinates and of attributes, as those of Pointcept."""
    stems = {entry.name[:-4].lower() for entry in _entries(folder) if entry.name[-4:].lower() == ".npy"}
    return bool(stems & set(COORDINATES)) and any(map(is_attribute, stems))


def _is_cloud(path: Path) -> bool:
    """Return whether a file is a cloud by its name."""
    return path.suffix.lower() in READERS and not _is_beside(path)


def _is_beside(path: Path) -> bool:
    """Return whether a file accompanies clouds without being one, by its name."""
    return is_side_file(path.name) or path.suffix.lower() in _BESIDE


def _entries(folder: Path) -> list[os.DirEntry]:
    """List a folder: entries know whether they are folders, which costs `Path.iterdir` another look at the disk."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []  # for the listing of the clouds to report


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


class CloudFinder:
    """Lists the clouds, files with some endings, in folders of a data set.

    It refuses what would be counted twice or passed over.
    """

    def __init__(self, root: Path, options: LoadOptions, endings: Collection[str] = READERS):
        self.root, self.endings = root, endings
        self.skip = options.skip_bad_files
        self._strange: list[Path] = []
        self._repeated: list[Path] = []
        self._attributes: list[Path] = []
        # The first file of each object, by its folders and its name without ending.
        self._objects: dict[tuple[tuple[str, ...], str], Path] = {}
        # Where each folder and file was found, by the number of the file system: links have another name only.
        self._found: dict[tuple[int, int], tuple[Path, str | None]] = {}
        for folder in (root, *Path(os.path.abspath(root)).parents):
            self._enter(folder, None)

    def list(self, folder: Path, place: str) -> list[Path]:
        """List the clouds of a folder and the folders in it, links followed, in order of their names.

        `place` is the class, and the split, that the folder stands for. A file or folder of two places, a folder that
        cannot be read, and one object in two formats are errors.
        """
        files: list[Path] = []
        for parent, names in self._walk(folder, place):
            files += self._clouds_of(parent, names, place)
        return files

    def report(self) -> None:
        """Refuse files of other kinds, or leave them out with a warning; warn of what was counted once."""
        root = printable(self.root)
        for paths, what in (
            (self._repeated, "links lead to what is in the same class already, and are left out"),
            (self._attributes, "files are taken for attributes of the clouds next to them, and left out"),
        ):
            if paths:
                more = ", ..." if len(paths) > 1 else ""
                warnings.warn(f"{root}: {len(paths)} {what}: {printable(paths[0])}{more}", stacklevel=2)
        if not self._strange:
            return
        first, number = self._strange[0], len(self._strange)
        endings = ", ".join(sorted({printable(path.suffix) or "no ending" for path in self._strange}))
        if self.skip:
            warnings.warn(f"{root}: {number} files of other kinds are skipped: {endings}", stacklevel=2)
            return
        if not first.is_file():
            what = "is a link that leads nowhere" if first.is_symlink() else "is neither a file nor a folder"
            raise PointCloudError(f"{printable(first)}: {what}; delete it (--skip_bad_files leaves it out)")
        raise PointCloudError(
            f"{printable(first)}: files of this kind are not read ({number} such under {root}: {endings}); readable "
            f"are {', '.join(sorted(self.endings))} (--skip_bad_files leaves others out)"
        )

    def _walk(self, folder: Path, place: str) -> Iterator[tuple[Path, list[str]]]:
        """Go through a folder and the folders in it, each once; with the names of the files."""
        waiting = [folder]
        while waiting:
            parent = waiting.pop()
            if not self._enter(parent, place):
                continue
            try:
                with os.scandir(parent) as entries:
                    kinds = sorted((entry.name, _is_folder(entry)) for entry in entries)
            except OSError as error:
                self._refuse_folder(parent, error)
                continue
            folders = [name for name, is_folder in kinds if is_folder and not is_side_folder(name)]
            belonging = find_attributes(folders, only_of_coordinates=True)
            waiting += [parent / name for name in reversed(folders) if name not in belonging]
            names = [name for name, is_folder in kinds if not is_folder]
            if belonging:  # above folders of points and labels there are calibrations and poses
                names = [name for name in names if Path(name).suffix.lower() not in _TEXT_OR_NOTES]
            yield parent, names

    def _refuse_folder(self, folder: Path, error: OSError) -> None:
        if not self.skip:
            raise PointCloudError(
                f"{printable(folder)}: the folder cannot be read: {error.strerror} (--skip_bad_files leaves it out)"
            )
        warnings.warn(f"{printable(folder)}: the folder cannot be read and is skipped: {error.strerror}", stacklevel=2)

    def _enter(self, path: Path, place: str | None, is_file: bool = False) -> bool:
        """Note that a file or folder belongs to a place; False if it is there under another name already."""
        try:
            info = os.stat(path)
        except OSError:
            info = None  # for the listing of the folder to report
        if is_file and (info is None or not stat.S_ISREG(info.st_mode)):
            self._strange.append(path)
            return False
        if info is None or info.st_ino == 0:  # a file system without numbers
            return True
        other, other_place = self._found.setdefault((info.st_dev, info.st_ino), (path, place))
        if other is path:
            return True
        if other_place is None:
            raise PointCloudError(
                f"{printable(path)}: is a link to {printable(other)}, a folder that holds the link itself; delete it"
            )
        if other_place != place:
            raise PointCloudError(
                f"{printable(path)} ({place}) and {printable(other)} ({other_place}) are the same "
                f"{'file' if is_file else 'folder'}, by a link: a cloud belongs to one class and one split; delete "
                "one of them"
            )
        self._repeated.append(path)
        return False

    def _clouds_of(self, parent: Path, names: list[str], place: str) -> list[Path]:
        """Choose the clouds among the files of a folder; other files are noted, or left out."""
        files = [(name, *os.path.splitext(name)) for name in names if not is_side_file(name)]
        files = [(name, stem, ending.lower()) for name, stem, ending in files if ending.lower() not in _BESIDE]
        arrays = {stem for _, stem, ending in files if ending in _ARRAYS}
        attributes = find_attributes({stem for _, stem, _ in files}) & arrays
        alone = [stem for _, stem, ending in files if ending == ".npy" and is_attribute(stem)]
        if alone and attributes.isdisjoint(alone):
            raise PointCloudError(
                f"{printable(parent / alone[0])}.npy: is it a cloud, or the {alone[0]} of one whose coordinates are "
                "missing? The coordinates belong into coord.npy next to it; a cloud needs another name"
            )
        of_folder = sorted(stem for stem in attributes if is_attribute(stem.rstrip("0123456789")))
        clouds = []
        for name, stem, ending in files:
            path = parent / name
            if stem in attributes and ending in _ARRAYS:
                if ending != ".npy" or stem not in of_folder:
                    self._attributes.append(path)
            elif ending not in self.endings:
                self._strange.append(path)
            elif self._enter(path, place, is_file=True):
                clouds.append(path)
        if of_folder and len(clouds) > 1:
            raise PointCloudError(
                f"{printable(parent)}: {printable(clouds[0].name)!r} and {printable(clouds[1].name)!r} are next to "
                f"{of_folder[0]!r}, an attribute of one cloud; give each cloud a folder of its own"
            )
        self._refuse_twins(parent, clouds)
        return clouds

    def _refuse_twins(self, parent: Path, clouds: list[Path]) -> None:
        """Refuse files that agree but for the format: one object, which would be counted, and tested, twice."""
        folders = tuple(part for part in map(str.casefold, parent.parts) if part not in _FORMAT_FOLDERS)
        for path in clouds:
            stem, ending = os.path.splitext(path.name)
            other = self._objects.setdefault((folders, stem.casefold()), path)
            if other is not path and not other.name.endswith(ending):
                raise PointCloudError(
                    f"{printable(other)} and {printable(path)}: one object in two formats, or two objects? If one, "
                    "keep one of the files, as it would be counted twice and could be both learnt and tested; if two, "
                    "rename one"
                )
