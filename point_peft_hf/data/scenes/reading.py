"""Files and folders to scenes: `read_scene`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import PointCloudError, shorten
from ..folder_tree import is_scene, subfolders
from ..formats.arrays import load_npy, named_arrays
from ..formats.columns import clean_name, find_axes, find_colors, find_labels, find_normals
from ..formats.pcd import read_pcd
from ..formats.ply import read_ply
from ..formats.scans import read_floats, read_las_chunks
from ..formats.text import TEXT_SUFFIXES, read_column_names, read_table
from ..names import COORDINATES
from ..part_files import find_label_file, read_label_file
from ..readers import choose_reader, errors_of
from .classes import number_of
from .scene import Scene, unpack_colors

ANNOTATIONS = "annotations"
_COLOR_FILES = ("color", "colors", "colour", "colours", "rgb")
_NORMAL_FILES = ("normal", "normals")
_INSTANCE = re.compile(r"(.+?)_\d+")


@dataclass(frozen=True)
class SceneFormat:
    """What files do not say themselves; the fields are arguments of `read_scene` and `load_scenes`.

    Args:
        columns: What the columns of text files, arrays and .bin files are, in order: `"x y z red green blue label"`;
            other words for columns that are left out.
        label_name: Name of the column, property, dimension or array of the labels, where several could be.
        class_names: Names of the classes by number, for scenes in the layout of S3DIS, whose files have names of
            classes in place of numbers.
    """

    columns: str | None = None
    label_name: str | None = None
    class_names: tuple[str, ...] | None = None

    @property
    def declared(self) -> list[str] | None:
        """The words of `columns`."""
        return None if self.columns is None else self.columns.replace(",", " ").lower().split()


def is_room(folder: Path) -> bool:
    """Return whether a folder is a room in the layout of S3DIS: with a folder `Annotations`, one file an object."""
    return any(entry.name.lower() == ANNOTATIONS for entry in subfolders(folder))


def read_scene(
    path: str | os.PathLike,
    *,
    labels: bool = True,
    drop_invalid: bool = False,
    columns: str | None = None,
    label_name: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Scene:
    """Read a scene with its colours, normals and labels, where it has any.

    Read are .las and .laz (labels are the classification), .ply and .pcd, .txt, .csv, .xyz, .asc, .pts, .npy, .npz,
    .h5 and .bin; folders of coord.npy, color.npy, normal.npy and segment.npy (Pointcept); and rooms in the layout of
    S3DIS. Columns are found by their names. Without names they are `x y z`, and colours or normals where the numbers
    leave no doubt; `columns` declares them. Labels can also be in a file of their own, as for `read_labelled_cloud`.

    Args:
        path: The file or folder.
        labels: Read the labels, where there are any.
        drop_invalid: Leave out points with NaN or infinite numbers instead of refusing the scene.
        columns: As in [`SceneFormat`].
        label_name: As in [`SceneFormat`].
        class_names: As in [`SceneFormat`]; without them a room of S3DIS is read without labels.

    Returns:
        The scene.

    Raises:
        PointCloudError: If the file is missing, broken, or does not say which of its numbers are what.
        ImportError: If the format needs a library of the `io` extra that is not installed.
    """
    path = Path(path)
    names = None if class_names is None else tuple(class_names)
    how = SceneFormat(columns, label_name, names)
    if path.is_dir() and is_room(path):
        return _read_room(path, how, labels, drop_invalid)
    if path.is_dir() and not is_scene(path):
        raise PointCloudError(
            f"{path}: a folder is a scene if it has coord.npy with color.npy or segment.npy (Pointcept), or a folder "
            "Annotations (S3DIS); load a folder of scenes with load_scenes"
        )
    with errors_of(path):
        if path.is_dir() or (path.suffix.lower() == ".npy" and path.stem.lower() in COORDINATES):
            parts = _read_folder(path if path.is_dir() else path.parent, how, labels)
        else:
            choose_reader(path)  # refuses what cannot be such a file
            parts = _read_file(path, how, labels)
        return Scene.make(**parts, name=str(path), drop_invalid=drop_invalid)


def _read_file(path: Path, how: SceneFormat, labels: bool) -> dict[str, np.ndarray]:
    suffix = path.suffix.lower()
    label_file = find_label_file(path) if labels and how.label_name is None else None
    inside = labels and label_file is None
    if suffix in (".las", ".laz"):
        parts = _read_las(path, how, inside)
    elif suffix in (".ply", ".pcd"):
        parts = _read_properties(path, how, inside)
    elif suffix in (".npz", ".h5", ".hdf5"):
        parts = _of_arrays(named_arrays(path), path, how, inside)
    else:
        parts = _read_table(path, how, inside)
    if label_file is not None:
        parts["labels"] = read_label_file(label_file)
    return parts


def _read_las(path: Path, how: SceneFormat, labels: bool) -> dict[str, np.ndarray]:
    wanted, pieces, origin = None, [], None
    for chunk in read_las_chunks(path):
        if wanted is None:
            names = list(chunk.point_format.dimension_names)
            wanted = _find_roles(names, path, how, labels=False, what="dimension")
            if labels:
                wanted["labels"] = [_place(how.label_name or "classification", names, path, "dimension")]
        place = np.stack([chunk.x, chunk.y, chunk.z], axis=1)
        origin = np.floor(place.min(axis=0)) if origin is None else origin
        piece = {"points": (place - origin).astype(np.float32)}
        for role, columns in wanted.items():
            piece[role] = np.stack([np.asarray(chunk[names[column]]) for column in columns], axis=1)
        pieces.append(piece)
    if not pieces:
        raise PointCloudError(f"{path}: holds 0 points; a scene has at least 2")
    parts = {role: np.concatenate([piece[role] for piece in pieces]) for role in pieces[0]}
    if "colors" in parts and not parts["colors"].any():
        del parts["colors"]  # the point format has room for colours that nobody wrote
    if "labels" in parts:
        parts["labels"] = parts["labels"][:, 0].astype(np.int64)
        if how.label_name is None and not parts["labels"].any():
            del parts["labels"]  # all created, never classified
    return {**parts, "origin": origin}


def _read_properties(path: Path, how: SceneFormat, labels: bool) -> dict[str, np.ndarray]:
    read, what = (read_ply, "vertex property") if path.suffix.lower() == ".ply" else (read_pcd, "field")
    roles: dict[str, list[int]] = {}

    def pick(names: list[str]) -> list[int]:
        roles.update(_find_roles(names, path, how, labels, what))
        cleaned = [clean_name(name) for name in names]
        if "colors" not in roles and "rgb" in cleaned:
            roles["colors"] = [cleaned.index("rgb")]  # three bytes in one number
        return [place for places in roles.values() for place in places]

    rows, _ = read(path, pick)
    parts, start = {"points": rows[:, :3]}, 3
    for role, places in roles.items():
        parts[role] = rows[:, start] if len(places) == 1 else rows[:, start : start + len(places)]
        start += len(places)
    if roles.get("colors") and len(roles["colors"]) == 1:
        parts["colors"] = unpack_colors(parts["colors"])
    return parts


def _read_table(path: Path, how: SceneFormat, labels: bool) -> dict[str, np.ndarray]:
    """Read text files, .npy files and .bin files: rows of numbers."""
    suffix, names, declared = path.suffix.lower(), None, how.declared
    if suffix == ".bin":
        if declared is None:
            raise PointCloudError(
                f"{path}: a .bin file does not say what its numbers are; declare them, as in columns='x y z "
                "intensity' (KITTI) or columns='x y z red green blue'"
            )
        table = read_floats(path, len(declared))
    elif suffix == ".npy":
        table = load_npy(path)
        if table.dtype.names is not None:
            return _of_arrays({name: table[name] for name in table.dtype.names}, path, how, labels)
    elif suffix in TEXT_SUFFIXES:
        names, table = read_column_names(path), read_table(path)
        if names is not None and any(names[3:]) and declared is not None:
            raise PointCloudError(
                f"{path}: its header names the columns, {shorten(names, 200)}, and they are declared as "
                f"{shorten(how.columns)}; delete the header, or leave the declaration out"
            )
    else:
        raise PointCloudError(f"{path}: scenes are not read from {suffix} files; convert it to .ply or .laz")
    if table.ndim != 2 or table.shape[1] < 3:
        raise PointCloudError(f"{path}: must be of shape (num_points, 3 or more), got {table.shape}")
    if declared is not None:
        if len(declared) != table.shape[1]:
            raise PointCloudError(
                f"{path}: has {table.shape[1]} columns, but {len(declared)} are declared: {shorten(how.columns)}"
            )
        names = declared
    if names is None or not any(names[3:]):
        roles = _guess_roles(table, path, labels)
        axes = [0, 1, 2]
    else:
        axes = find_axes(names)
        if axes is None:
            raise PointCloudError(f"{path}: the columns {shorten(names, 200)} do not name x, y and z")
        roles = _find_roles(names, path, how, labels, "column")
    parts = {"points": table[:, axes]}
    for role, places in roles.items():
        parts[role] = table[:, places[0]] if role == "labels" else table[:, places]
    return parts


def _of_arrays(arrays: dict[str, np.ndarray], path: Path, how: SceneFormat, labels: bool) -> dict[str, np.ndarray]:
    """Choose among named arrays or fields: whole ones (points, colors), or one a column (x, y, z)."""
    names = [clean_name(name) for name in arrays]
    values = dict(zip(names, arrays.values(), strict=True))
    parts = {}
    for role, known in (("points", COORDINATES), ("colors", _COLOR_FILES), ("normals", _NORMAL_FILES)):
        found = [name for name in names if name in known and values[name].ndim == 2]
        if len(found) > 1:
            raise PointCloudError(f"{path}: both {found[0]!r} and {found[1]!r} can hold the {role}; keep one")
        if found:
            parts[role] = values[found[0]]
    axes = find_axes(names)
    roles = _find_roles(names, path, how, labels, "array")
    if "points" not in parts:
        if axes is None:
            raise PointCloudError(f"{path}: no array of points, xyz or coord; it has {shorten(names, 200)}")
        parts["points"] = np.stack([values[names[axis]] for axis in axes], axis=1)
    for role, places in roles.items():
        if role not in parts:
            columns = [np.ravel(values[names[place]]) for place in places]
            parts[role] = columns[0] if role == "labels" else np.stack(columns, axis=1)
    return parts


def _find_roles(names: Sequence[str], path: Path, how: SceneFormat, labels: bool, what: str) -> dict[str, list[int]]:
    """Find by their names which columns are colours, normals and the label."""
    cleaned = [clean_name(name) for name in names]
    roles = {"colors": find_colors(cleaned), "normals": find_normals(cleaned)}
    if labels and how.label_name is not None:
        roles["labels"] = [_place(how.label_name, names, path, what)]
    elif labels and (places := find_labels(names)):
        if len(places) > 1:
            raise PointCloudError(
                f"{path}: cannot tell which {what} holds the labels, {' or '.join(names[place] for place in places)}; "
                "choose it with label_name"
            )
        roles["labels"] = places
    return {role: places for role, places in roles.items() if places}


def _place(name: str, names: Sequence[str], path: Path, what: str) -> int:
    cleaned = [clean_name(other) for other in names]
    if clean_name(name) not in cleaned:
        raise PointCloudError(f"{path}: has no {what} {name!r} for the labels; it has {shorten(list(names), 200)}")
    return cleaned.index(clean_name(name))


def _guess_roles(table: np.ndarray, path: Path, labels: bool) -> dict[str, list[int]]:
    """Decide by the numbers what columns without names are; an error where they leave a doubt."""
    width = table.shape[1]
    if width == 3:
        return {}
    some = np.asarray(table[:: max(1, len(table) // 4096)], dtype=np.float64)
    some = some[np.isfinite(some).all(axis=1)]
    if not len(some):
        raise PointCloudError(f"{path}: has no row of finite numbers")

    def is_color(start: int) -> bool:
        values = some[:, start : start + 3]
        whole = (values == np.round(values)).all()
        return bool(values.min() >= 0 and values.max() <= 255 and whole and values.max() > 1)

    def is_normal(start: int) -> bool:
        values = some[:, start : start + 3]
        length = np.sqrt((values**2).sum(axis=1))
        return bool((abs(length - 1) < 0.02).mean() > 0.98) and bool((values != np.round(values)).any())

    roles: dict[str, list[int]] = {}
    if width in (6, 9, 10) and is_color(3):
        roles["colors"] = [3, 4, 5]
    if width in (6, 7) and is_normal(3):
        roles["normals"] = [3, 4, 5]
    if width in (9, 10) and is_normal(6):
        roles["normals"] = [6, 7, 8]
    decided = {6: 1, 7: 1, 9: 2, 10: 2}.get(width)
    if width == 4 or (width in (7, 10) and len(roles) == decided):
        last = some[:, -1]
        if width == 4 and labels and not ((last == np.round(last)).all() and last.max() < 256):
            raise PointCloudError(
                f"{path}: cannot tell whether its fourth column is the label or an intensity; declare the columns, as "
                "in columns='x y z intensity'"
            )
        return {**roles, **({"labels": [width - 1]} if labels else {})}
    if len(roles) != decided:
        raise PointCloudError(
            f"{path}: cannot tell what its {width} columns are, which have no names; for example 'x y z red green "
            "blue label' or 'x y z intensity red green blue': name them in a header, or declare them with "
            "columns='x y z ...'"
        )
    return roles


def _read_folder(folder: Path, how: SceneFormat, labels: bool) -> dict[str, np.ndarray]:
    """Read a folder of arrays, as Pointcept prepares scenes."""
    files = {entry.stem.lower(): entry for entry in folder.iterdir() if entry.suffix.lower() == ".npy"}
    found = [name for name in files if name in COORDINATES]
    if len(found) != 1:
        raise PointCloudError(f"{folder}: needs one array of coordinates, coord.npy; has {sorted(files)}")
    parts = {"points": load_npy(files[found[0]])}
    for role, known in (("colors", _COLOR_FILES), ("normals", _NORMAL_FILES)):
        for name in known:
            if name in files:
                parts[role] = load_npy(files[name])
    if labels and how.label_name is not None:
        if how.label_name.lower() not in files:
            raise PointCloudError(f"{folder}: has no {how.label_name}.npy for the labels; it has {sorted(files)}")
        parts["labels"] = read_label_file(files[how.label_name.lower()])
    elif labels and (label_file := find_label_file(files[found[0]])) is not None:
        parts["labels"] = read_label_file(label_file)
    return parts


def object_files(room: Path) -> list[tuple[str, Path]]:
    """List class and file of each object of a room in the layout of S3DIS: `chair_2.txt` is of the class chair."""
    folder = next(entry for entry in subfolders(room) if entry.name.lower() == ANNOTATIONS)
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() == ".txt" and file.name[0] != "."]
    if not files:
        raise PointCloudError(f"{folder}: has no file CLASS_N.txt with the points of an object")
    named = [(_INSTANCE.fullmatch(file.stem), file) for file in files]
    return [(match[1] if match else file.stem, file) for match, file in named]


def _read_room(room: Path, how: SceneFormat, labels: bool, drop_invalid: bool) -> Scene:
    whole = room / f"{room.name}.txt"
    numbers = None if how.class_names is None else {name: index for index, name in enumerate(how.class_names)}
    labels = labels and numbers is not None
    if not labels and whole.is_file():
        parts = read_scene(whole, labels=False, drop_invalid=drop_invalid, columns=how.columns)
        parts.name = str(room)
        return parts
    tables, classes = [], []
    for name, file in object_files(room):
        with errors_of(file):
            table = read_table(file)
        if table.shape[1] != 6 and how.columns is None:
            raise PointCloudError(f"{file}: an object has 6 columns, x y z red green blue, got {table.shape[1]}")
        tables.append(table)
        classes.append(np.full(len(table), number_of(name, numbers) if labels else -1))
    table = np.concatenate(tables)
    columns = how.declared or ["x", "y", "z", "red", "green", "blue"]
    axes = find_axes(columns)
    roles = _find_roles(columns, room, how, False, "column")
    parts = {"points": table[:, axes], **{role: table[:, places] for role, places in roles.items()}}
    if labels:
        parts["labels"] = np.concatenate(classes)
    return Scene.make(**parts, name=str(room), drop_invalid=drop_invalid)
