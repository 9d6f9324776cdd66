"""Arrays on disk: .npy, .npz, .h5; and survey scans, .las and .laz. None of these readers runs code from a file."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import PointCloudError, import_optional

if TYPE_CHECKING:
    import h5py

# Names that a cloud has in files of many arrays, in order of preference.
_NAMES = ("points", "point", "xyz", "pos", "position", "positions", "coords", "data", "arr_0", "vertices")
_MAX_HDF5_BYTES = 64 << 30
# What numpy and zipfile raise at broken files. A header is parsed as Python, hence the third line.
_BROKEN = (
    *(ValueError, EOFError, KeyError, TypeError, AttributeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, RuntimeError),
    *(SyntaxError, tokenize.TokenError),
)


def read_npy(path: Path) -> tuple[np.ndarray, None]:
    """Read an .npy file of shape (num_points, 3 or more); arrays of Python objects are refused."""
    _check_signature(path, b"\x93NUMPY")
    try:
        # Mapped first, as that compares the size of the file with the header before any memory is taken.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _BROKEN as error:
        raise PointCloudError(f"{path}: not a readable .npy file: {_reason(error)}") from None
    return _cloud(array, path, "the array"), None


def read_npz(path: Path) -> tuple[np.ndarray, None]:
    """Read the cloud in an .npz file: its only array, or the one named points, xyz, pos, coords, data or vertices."""
    _check_signature(path, b"PK")
    try:
        with np.load(path, allow_pickle=False) as archive:
            name = _choose(archive.files, path, ".npz file")
            array = archive[name]
    except PointCloudError:
        raise
    except (*_BROKEN, OSError) as error:
        raise PointCloudError(f"{path}: not a readable .npz file: {_reason(error)}") from None
    return _cloud(array, path, f"array {name!r}"), None


def load_npz_array(path: Path, names: tuple[str, ...]) -> np.ndarray:
    """Load the array of an .npz file that has one of some names, upper and lower case aside.

    Args:
        path: The file, one that `read_npz` has read.
        names: The names.

    Returns:
        The array.

    Raises:
        PointCloudError: If there is none, or it holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = next((name for name in archive.files if name.lower() in names), None)
            if found is None:
                raise PointCloudError(f"{path}: has no array named {', '.join(names)}; it has {sorted(archive.files)}")
            return archive[found]
    except PointCloudError:
        raise
    except (*_BROKEN, OSError) as error:
        raise PointCloudError(f"{path}: not a readable .npz file: {_reason(error)}") from None


def read_h5(path: Path) -> tuple[np.ndarray, None]:
    """Read the cloud in an .h5 file of one cloud; a file of many clouds is a data set, for `load_dataset`."""
    with open_h5(path) as file:
        names = [name for name in file if isinstance(file.get(name, getlink=True), _h5py().HardLink)]
        name = _choose([name for name in names if hasattr(file[name], "shape")], path, ".h5 file")
        array = read_h5_array(file, name, path)
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    return _cloud(array, path, f"array {name!r}"), None


def _check_signature(path: Path, signature: bytes) -> None:
    # numpy takes a file without one for a pickle, and its error then tells the user to run it.
    with open(path, "rb") as file:
        head = file.read(len(signature))
    if head != signature:
        raise PointCloudError(f"{path}: not an {path.suffix} file: it starts with {head!r}, not with {signature!r}")


def _reason(error: Exception) -> str:
    text = _first_sentence(error)
    if "Object arrays" in text or "Python objects" in text or "allow_pickle" in text:
        return "it holds Python objects, which are not loaded as they could run code; save an array of numbers"
    return text


def _h5py():
    return import_optional("h5py", "Reading .h5 files")


def open_h5(path: Path) -> h5py.File:
    """Open an .h5 file for reading.

    Args:
        path: The file.

    Returns:
        The open file, a context manager.

    Raises:
        PointCloudError: If there is no such file or it is not HDF5.
    """
    h5py = _h5py()
    if not Path(path).is_file():
        raise PointCloudError(f"{path}: no such file")
    try:
        return h5py.File(path, "r", locking=False)
    except (OSError, ValueError) as error:
        raise PointCloudError(f"{path}: not a readable HDF5 file, or truncated: {_first_sentence(error)}") from None


def read_h5_array(file: h5py.File, name: str, path: Path) -> np.ndarray:
    """Read an array of an open .h5 file, if all of it is stored in that file.

    Args:
        file: The open file.
        name: Name of the array at the top of the file.
        path: Its path, for messages.

    Returns:
        The array.

    Raises:
        PointCloudError: If there is no such array, it lies in another file, or it cannot be read.
    """
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
    if array.dtype.kind not in "fiu" or array.nbytes > _MAX_HDF5_BYTES:
        raise PointCloudError(f"{path}: {name!r} cannot be read: {array.dtype} of shape {array.shape}")
    try:
        return array[()]
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        raise PointCloudError(f"{path}: {name!r} cannot be read; truncated? {_first_sentence(error)}") from None


def read_las(path: Path) -> tuple[np.ndarray, None]:
    """Read the coordinates of a .las or .laz file, scaled and shifted as its header says, in its unit."""
    laspy = import_optional("laspy", "Reading .las and .laz files")
    if path.suffix.lower() == ".laz" and not laspy.LazBackend.detect_available():
        import_optional("lazrs", "Reading .laz files")
    try:
        with laspy.open(path) as reader:
            promised = reader.header.point_count
            points = np.asarray(reader.read().xyz)
    except ImportError:
        raise
    except Exception as error:  # laspy and its decompressor have no common class of errors
        raise PointCloudError(f"{path}: not a readable {path.suffix} file: {_first_sentence(error)}") from None
    if len(points) != promised:
        raise PointCloudError(
            f"{path}: the header promises {promised} points, the file holds {len(points)}; truncated?"
        )
    return points, None


def _choose(names: list[str], path: Path, what: str) -> str:
    """Choose the array that holds the cloud."""
    lower = {name.lower(): name for name in names}
    chosen = next((lower[name] for name in _NAMES if name in lower), None)
    if chosen is None and len(names) == 1:
        chosen = names[0]
    if chosen is None:
        raise PointCloudError(
            f"{path}: cannot tell which array of this {what} is the cloud: it has {sorted(names)}; name it 'points'"
        )
    return chosen


def _cloud(array: np.ndarray, path: Path, what: str) -> np.ndarray:
    """Check that an array is one cloud, and take its coordinates."""
    if not isinstance(array, np.ndarray):  # a file in an archive that is no array
        raise PointCloudError(f"{path}: {what} is not an array of numbers")
    if array.dtype.kind not in "fiu":
        raise PointCloudError(f"{path}: {what} must be of real numbers, got {array.dtype}")
    if array.ndim == 3 and array.shape[2] >= 3:
        raise PointCloudError(
            f"{path}: {what} of shape {array.shape} holds {len(array)} clouds; read one, array[i], or load them all "
            "as a data set"
        )
    if array.ndim != 2 or array.shape[1] < 3 or looks_transposed(array.shape):
        hint = "; it looks transposed, save array.T" if looks_transposed(array.shape) else ""
        raise PointCloudError(f"{path}: {what} must be of shape (num_points, 3 or more), got {array.shape}{hint}")
    return np.array(array[:, :3])


def looks_transposed(shape: tuple[int, ...]) -> bool:
    """Tell whether an array has one row an axis and one column a point: no cloud of 3 points has that many columns."""
    return len(shape) == 2 and shape[0] == 3 and (shape[1] < 3 or shape[1] > 12)


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
