"""Arrays on disk: .npy, .npz and .h5. None of these readers runs code from a file."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PointCloudError, import_optional, shorten
from .columns import LABEL_NAMES, find_axes, find_labels, pick_label
from .polygons import triangulate

if TYPE_CHECKING:
    import h5py

# Names that a cloud has in files of many arrays, in order of preference.
_NAMES = (
    *("points", "point", "xyz", "pos", "position", "positions", "coord", "coords", "coordinates"),
    *("pointcloud", "point_cloud", "cloud", "pc", "pcd", "data", "arr_0", "vertices", "verts"),
)
_FACE_NAMES = ("faces", "face", "triangles", "tris", "mesh")
# Arrays that make the points samples of the space around a surface, as for DeepSDF and occupancy networks.
_OF_SPACE = ("neg", "sdf", "sdfs", "udf", "tsdf", "occ", "occupancy", "occupancies", "distance", "distances")
_FIELDS = ("xyz", "points", "position", "pos", "coord", "coords", "coordinates", "p")
_MAX_HDF5_BYTES = 64 << 30
# What numpy and zipfile raise at broken files. A header is parsed as Python, hence the third line.
_BROKEN = (
    *(ValueError, EOFError, KeyError, TypeError, AttributeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, MemoryError),
    *(SyntaxError, tokenize.TokenError, RecursionError),
)


def read_npy(path: Path) -> tuple[np.ndarray, None]:
    """Read an .npy file of shape (num_points, 3 or more), or with fields x, y, z; Python objects are refused."""
    return _cloud(load_npy(path), path, "the array"), None


def load_npy(path: Path) -> np.ndarray:
    """Open the only array of an .npy file, mapped into memory; Python objects and further arrays are errors."""
    _check_signature(path, b"\x93NUMPY")
    try:
        # Mapped first, as that compares the size of the file with the header before any memory is taken.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _BROKEN as error:
        raise PointCloudError(f"{path}: not a readable .npy file: {_reason(error)}") from None
    rest = os.path.getsize(path) - getattr(array, "offset", 0) - array.nbytes
    if rest:
        raise PointCloudError(
            f"{path}: its header promises an array of shape {array.shape}, and {rest} bytes follow it; several arrays "
            "in one file are not read, save them as .npz"
        )
    return array


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an .npz or .h5 file of one cloud: its only array, the one named points, xyz, coord or the like.

    With an array of faces that one holds vertices. A file of many clouds is a data set, for `load_dataset`.
    """
    with open_arrays(path) as arrays:
        return _read_cloud(arrays, path)


def read_array_labels(path: Path) -> np.ndarray:
    """Read the labels, `(num_points,)`, of an .npz or .h5 file: the array, or field of the cloud, of such a name."""
    with open_arrays(path) as arrays:
        return _read_labels(arrays, path)


def named_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz or .h5 file of one cloud; the columns of a single structured one by their names."""
    with open_arrays(path) as file:
        arrays = {name: file.load(name) for name in file.names}
    if len(arrays) == 1:
        array = next(iter(arrays.values()))
        return {name: array[name] for name in array.dtype.names} if array.dtype.names else {"points": array}
    return arrays


@dataclass(frozen=True)
class Arrays:
    """The arrays of an open file: their names, and functions of a name that give the shape and the array."""

    names: list[str]
    shape: Callable[[str], tuple[int, ...]]
    load: Callable[[str], np.ndarray]


@contextmanager
def open_arrays(path: Path) -> Iterator[Arrays]:
    """Open an .npz or .h5 file, whose arrays are then read one by one; one that cannot be read is an error."""
    if path.suffix.lower() != ".npz":
        with open_h5(path) as h5:
            names = [name for name in h5 if isinstance(h5.get(name, getlink=True), _h5py().HardLink)]
            names = [name for name in names if hasattr(h5[name], "shape")]
            yield Arrays(names, lambda name: h5[name].shape or (), lambda name: read_h5_array(h5, name, path))
        return
    _check_signature(path, b"PK")

    def attempt(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (*_BROKEN, OSError) as error:
            raise PointCloudError(f"{path}: not a readable .npz file: {_reason(error)}") from None

    with attempt(lambda: np.load(path, allow_pickle=False)) as npz:
        arrays = {name: partial(attempt, partial(npz.__getitem__, name)) for name in npz.files}
        yield Arrays(list(arrays), lambda name: np.shape(arrays[name]()), lambda name: arrays[name]())


def field_labels(array: np.ndarray, path: Path) -> np.ndarray:
    """Give the labels, `(num_points,)`, of an array with named fields; an error if it is not clear which they are."""
    names = list(array.dtype.names)
    return np.ravel(array[names[pick_label(names, "field")]])


def _check_signature(path: Path, signature: bytes) -> None:
    # numpy takes a file without one for a pickle, and its error then tells the user to run it.
    with open(path, "rb") as file:
        head = file.read(len(signature))
    if head != signature:
        raise PointCloudError(f"{path}: not an {path.suffix} file: it starts with {head!r}, not with {signature!r}")


def _reason(error: BaseException) -> str:
    text = first_sentence(error)
    if "Object arrays" in text or "Python objects" in text or "allow_pickle" in text:
        return "it holds Python objects, which are not loaded as they could run code; save an array of numbers"
    return text


def _h5py():
    return import_optional("h5py", "Reading .h5 files")


def open_h5(path: Path) -> h5py.File:
    """Open an .h5 file for reading, a context manager; it is an error if it is missing or not HDF5."""
    h5py = _h5py()
    if not Path(path).is_file():
        raise PointCloudError(f"{path}: no such file")
    try:
        return h5py.File(path, "r", locking=False)
    except (OSError, ValueError) as error:
        raise PointCloudError(f"{path}: not a readable HDF5 file, or truncated: {first_sentence(error)}") from None


def read_h5_array(file: h5py.File, name: str, path: Path) -> np.ndarray:
    """Read an array of an open .h5 file by its name, if all of it is stored in that file."""
    if name not in file:
        raise PointCloudError(f"{path}: has no array {name!r}; it has {sorted(file)}")
    # Links, virtual arrays and external storage could read any other file of this machine into the data.
    if not isinstance(file.get(name, getlink=True), _h5py().HardLink):
        raise PointCloudError(f"{path}: {name!r} is a link to somewhere else; links are not followed")
    array = file[name]
    if not hasattr(array, "shape") or array.shape is None:
        raise PointCloudError(f"{path}: {name!r} is not an array")
    if array.external or array.is_virtual:
        raise PointCloudError(f"{path}: {name!r} is stored in other files; store it in this one")
    numbers = array.dtype.kind in "fiu" or (array.dtype.names is not None and not array.dtype.hasobject)
    # What is not stored at all comes out as zeros, as much as the header likes; gzip packs about a thousand to one.
    stored = array.nbytes <= (1 << 16) + 2000 * array.id.get_storage_size()
    if not numbers or array.nbytes > _MAX_HDF5_BYTES or not stored:
        raise PointCloudError(f"{path}: {name!r} cannot be read: {array.dtype} of shape {array.shape}")
    try:
        return array[()]
    except (OSError, ValueError, MemoryError, RuntimeError, TypeError, KeyError) as error:
        raise PointCloudError(f"{path}: {name!r} cannot be read; truncated? {first_sentence(error)}") from None


def _by_name(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in wanted if name in lower), None)


def _read_cloud(arrays: Arrays, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the cloud or the mesh among named arrays."""
    names, load = arrays.names, arrays.load
    of_space = _by_name(names, _OF_SPACE)
    if of_space is not None:
        raise PointCloudError(
            f"{path}: has an array {of_space!r}, so its points can be samples of the space around a shape (signed "
            f"distances, occupancies) rather than of its surface; if they are its surface, save them alone. It has "
            f"{shorten(sorted(names), 200)}"
        )
    chosen = _by_name(names, _NAMES) or (names[0] if len(names) == 1 else None)
    axes = [_by_name(names, (axis,)) for axis in "xyz"]
    if chosen is None and None not in axes:
        columns = [np.asarray(load(name)) for name in axes]
        if len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
            raise PointCloudError(f"{path}: x, y and z must be of one shape (num_points,), got {columns[0].shape}")
        return _cloud(np.stack(columns, axis=1), path, "x, y and z"), None
    if chosen is None:
        raise PointCloudError(
            f"{path}: cannot tell which array of this {path.suffix} file is the cloud: it has {sorted(names)}; name "
            "it 'points'"
        )
    points = _cloud(load(chosen), path, f"array {chosen!r}")
    faces = _by_name(names, _FACE_NAMES)
    if faces is None or faces == chosen:
        return points, None
    return points, triangulate(_faces(load(faces), path, faces), points)


def _faces(array: np.ndarray, path: Path, name: str) -> np.ndarray:
    """Check that an array holds the vertices of faces, also as fields v1, v2, v3; shape `(num_faces, corners)`."""
    if array.dtype.names is not None:
        corners = [field for field in array.dtype.names if field[:1] == "v" and field[1:].isdecimal()]
        if len(corners) >= 3 and all(array.dtype[field].kind in "iu" for field in corners):
            array = np.stack([array[field] for field in corners], axis=-1)
    if array.ndim != 2 or array.shape[1] not in (3, 4) or array.dtype.kind not in "iu":
        raise PointCloudError(
            f"{path}: array {name!r} must hold the vertices of faces, whole numbers of shape (num_faces, 3), got "
            f"{array.dtype} of {array.shape}; without it the points are read as a cloud"
        )
    return array


def _read_labels(arrays: Arrays, path: Path) -> np.ndarray:
    names, load = arrays.names, arrays.load
    if not find_labels(names):
        chosen = _by_name(names, _NAMES) or (names[0] if len(names) == 1 else None)
        array = load(chosen) if chosen is not None else None
        if array is not None and array.dtype.names is not None:
            return field_labels(array, path)
        raise PointCloudError(
            f"{path}: has no array named {', '.join(LABEL_NAMES[:6])} or the like; it has {sorted(names)}"
        )
    labels = np.asarray(load(names[pick_label(names, "array")]))
    if labels.ndim == 2 and 1 in labels.shape:
        labels = labels.reshape(-1)
    if labels.ndim != 1:
        raise PointCloudError(f"{path}: the labels must be of shape (num_points,), got {labels.shape}")
    return labels


def _cloud(array: np.ndarray, path: Path, what: str) -> np.ndarray:
    """Check that an array is one cloud, and take its coordinates."""
    if not isinstance(array, np.ndarray):  # a file in an archive that is not an array
        raise PointCloudError(f"{path}: {what} is not an array of numbers")
    if array.dtype.names is not None:
        array = _from_fields(array, path, what)
    if array.dtype.kind not in "fiu":
        raise PointCloudError(f"{path}: {what} must be of real numbers, got {array.dtype}")
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[2] >= 3:
        raise PointCloudError(
            f"{path}: {what} of shape {array.shape} holds {len(array)} clouds, or one organised as an image; save one "
            "cloud, array[i]; make a data set of all, PointCloudDataset(array, labels, class_names); or save an image "
            f"as array.reshape(-1, {array.shape[2]})"
        )
    check_not_transposed(array.shape, f"{path}: {what}")
    if array.ndim != 2 or array.shape[1] < 3:
        raise PointCloudError(f"{path}: {what} must be of shape (num_points, 3 or more), got {array.shape}")
    return np.array(array[:, :3])


def _from_fields(array: np.ndarray, path: Path, what: str) -> np.ndarray:
    """Take the coordinates of an array with named fields, of any shape: x, y, z, or one field of three numbers."""
    names = list(array.dtype.names)
    axes = find_axes([name.lower() for name in names])
    if axes is not None:
        columns = [array[names[place]] for place in axes]
        if all(column.dtype.kind in "fiu" and column.shape == array.shape for column in columns):
            return np.stack([np.ravel(column) for column in columns], axis=1)
    single = _by_name(names, _FIELDS)
    if single is not None and array.dtype[single].shape == (3,):
        return array[single].reshape(-1, 3)
    raise PointCloudError(f"{path}: {what} has no fields x, y and z, one number each; it has {shorten(names, 200)}")


def looks_transposed(shape: tuple[int, ...]) -> bool:
    """Return whether an array may have one row a channel and one column a point: it has more columns than rows.

    Two rows cannot be coordinates, and up to 7 columns are common for a cloud, however few points it has.
    """
    return len(shape) == 2 and ((shape[0] == 3 and shape[1] < 3) or (3 <= shape[0] < shape[1] and shape[1] > 7))


def check_not_transposed(shape: tuple[int, ...], what: str) -> None:
    """Refuse the shape of a cloud for which `looks_transposed` holds; the message starts with `what`."""
    if looks_transposed(shape):
        raise PointCloudError(
            f"{what} must be of shape (num_points, 3 or more), got {shape}: it looks transposed; save array.T for "
            f"{shape[1]} points with {shape[0]} numbers each, or array[:, :3] for {shape[0]} points"
        )


def first_sentence(error: BaseException) -> str:
    """Give the text of an error on one line, cut to a length for messages."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
