"""The clouds of files and folders that have no labels, for prediction."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import PointCloudError
from .folder_tree import is_scene
from .formats.arrays import load_npy, open_arrays
from .names import COORDINATES, find_attributes, is_side_file, is_side_folder, printable
from .readers import READERS, errors_of
from .scenes.layouts import SCENE_ENDINGS

_MANY = (".h5", ".hdf5", ".npz", ".npy")


@dataclass(frozen=True)
class ListedCloud:
    """A cloud to predict.

    Attributes:
        file: Its file.
        source: What is read: the file, or the points, of shape `(num_points, 3 or more)`, where it holds many clouds.
        place: Its file below the folder that was listed, for files to be written.
        number: Its number in a file of many clouds; `None` where it is the only one.
    """

    file: Path
    source: Path | np.ndarray
    place: Path
    number: int | None = None

    @property
    def name(self) -> str:
        """What to call it: its file, with its number where there is one."""
        return printable(self.file) + ("" if self.number is None else f"[{self.number}]")


def list_clouds(paths: Iterable[str | os.PathLike], *, scenes: bool = False) -> Iterator[ListedCloud]:
    """List the clouds in files and folders.

    Folders are searched with all folders below them, in the order of names; hidden files and folders, and attributes
    of the clouds beside them, are left out. .h5, .npz and .npy files may hold many clouds, as an array of shape
    `(num_clouds, num_points, 3 or more)`.

    Args:
        paths: Files and folders. A file that is not there is listed as well: reading it says so.
        scenes: List scenes: no meshes, and folders of Pointcept and S3DIS count as one scene each.

    Yields:
        The clouds.

    Raises:
        PointCloudError: If a folder holds none.
    """
    endings = tuple(SCENE_ENDINGS if scenes else READERS)
    for path in map(Path, paths):
        if not path.is_dir():
            yield from _clouds_of(path, Path(path.name), scenes)
            continue
        files = list(_below(path, endings, scenes))
        if not files:
            raise PointCloudError(f"{printable(path)}: holds no point clouds; read are {', '.join(sorted(endings))}")
        for file in files:
            yield from _clouds_of(file, Path(path.name) if file == path else file.relative_to(path), scenes)


def _below(folder: Path, endings: tuple[str, ...], scenes: bool) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        if scenes and ("Annotations" in folders or is_scene(Path(parent))):
            folders.clear()
            yield Path(parent)
            continue
        folders[:] = sorted(name for name in folders if not is_side_folder(name))
        attributes = find_attributes({Path(name).stem for name in files})
        for name in sorted(files):
            if Path(name).suffix.lower() in endings and not is_side_file(name) and Path(name).stem not in attributes:
                yield Path(parent, name)


def _clouds_of(file: Path, place: Path, scenes: bool) -> Iterator[ListedCloud]:
    many = None if scenes or file.suffix.lower() not in _MANY else _many_clouds(file)
    if many is None:
        yield ListedCloud(file, file, place)
        return
    for number, points in enumerate(many):
        yield ListedCloud(file, points, place, number)


def _many_clouds(file: Path) -> np.ndarray | None:
    """The clouds of a file that holds many; None for one, or for a file that cannot be read: its reader says why."""
    try:
        with errors_of(file):
            if file.suffix.lower() == ".npy":
                array = load_npy(file)
                return array if _are_many(array.shape) else None
            with open_arrays(file) as arrays:
                large = [name for name in arrays.names if _are_many(arrays.shape(name))]
                named = [name for name in large if name.lower() in (*COORDINATES, "data")]
                names = large if len(large) == 1 else named
                return arrays.load(names[0]) if len(names) == 1 else None
    except (PointCloudError, ImportError):
        return None


def _are_many(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[2] >= 3
