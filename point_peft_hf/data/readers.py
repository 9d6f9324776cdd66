"""Files to arrays: `read_point_cloud` and `write_point_cloud`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .errors import PointCloudError
from .files import atomic_write
from .formats.arrays import read_arrays, read_npy
from .formats.glb import read_glb
from .formats.obj import read_obj
from .formats.off import read_off
from .formats.pcd import read_pcd
from .formats.ply import read_ply
from .formats.polygons import sample_surface
from .formats.scans import read_bin, read_e57, read_las
from .formats.stl import read_stl
from .formats.text import TEXT_SUFFIXES, read_text

Reader = Callable[[Path], tuple[np.ndarray, "np.ndarray | None"]]

READERS: dict[str, Reader] = {
    **dict.fromkeys(TEXT_SUFFIXES, read_text),
    **dict.fromkeys((".npz", ".h5", ".hdf5"), read_arrays),
    **dict.fromkeys((".las", ".laz"), read_las),
    ".bin": read_bin,
    ".e57": read_e57,
    ".glb": read_glb,
    ".npy": read_npy,
    ".obj": read_obj,
    ".off": read_off,
    ".pcd": read_pcd,
    ".ply": read_ply,
    ".stl": read_stl,
}
DEFAULT_MESH_POINTS = 8192
_SHIFTED = (
    "coordinates far from the origin are shifted so that float32 keeps the shape: they are relative to the lowest "
    "corner of the cloud, rounded down"
)
_BLURRED = (
    "coordinates are so far from the origin that float32, in which they were saved, has lost the shape: neighbouring "
    "values are more than a 10,000th of the cloud apart; export them again as double, or shifted to the origin"
)
_MIN_BLURRED = 32
_EPSILON = float(np.finfo(np.float32).eps)
# First bytes that give a format away when the name of the file does not agree.
_SIGNATURES = (
    (b"ply\n", ".ply"),
    (b"ply\r", ".ply"),
    (b"# .PCD", ".pcd"),
    (b"\x93NUMPY", ".npy"),
    (b"PK\x03\x04", ".npz"),
    (b"\x89HDF\r\n", ".h5"),
    (b"LASF", ".las"),
    (b"ASTM-E57", ".e57"),
    (b"glTF", ".glb"),
    (b"%PDF", ".pdf"),
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
)
_SAME_SIGNATURE = {".laz": ".las", ".hdf5": ".h5"}


def read_point_cloud(
    path: str | os.PathLike,
    num_points: int | None = None,
    seed: int = 0,
    *,
    drop_invalid: bool = False,
    num_columns: int | None = None,
) -> np.ndarray:
    """Read a cloud or a mesh from a file, by the ending of its name.

    Read are .ply, .pcd, .off, .obj, .stl, .glb, .xyz, .txt, .csv, .pts, .asc, .npy, .npz, .las, .laz, .e57, .h5 and
    .bin. Coordinates keep the unit and the axes of the file. When they are so far from the origin that float32 would
    blur the shape (surveys in metres of a national grid), they are shifted to start near 0, with a warning. What
    float32 has already blurred in the file is a warning as well.

    Args:
        path: The file.
        num_points: Number of points drawn uniformly on the surface of a mesh, 8192 by default. Clouds come whole.
        seed: Seed of that draw: the same file, number and seed give the same points.
        drop_invalid: Leave out points with NaN or infinite coordinates, as depth cameras write them, instead of
            refusing the file.
        num_columns: How many float32 numbers a point of a .bin file has, x, y, z first: 4 for KITTI, 5 for nuScenes.

    Returns:
        Array of shape `(num_points, 3)`, float32.

    Raises:
        PointCloudError: If the file is missing, empty, of a format that is not read, broken, holds fewer than two
            points, or NaN or infinite coordinates. The message names the file.
        ImportError: If the format needs a library of the `io` extra that is not installed.
    """
    points, shift = read_shifted(path, num_points, seed, drop_invalid=drop_invalid, num_columns=num_columns)
    if shift.any():
        warnings.warn(_SHIFTED, stacklevel=2)
    return points


def read_shifted(
    path: str | os.PathLike,
    num_points: int | None = None,
    seed: int = 0,
    *,
    drop_invalid: bool = False,
    num_columns: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read as `read_point_cloud`; instead of warning of a shift, also give it.

    The shift, of shape `(3,)`, is what must be added to the points in float64 for the coordinates of the file: zeros
    where they are not shifted.
    """
    path = Path(path)
    if num_points is not None and num_points < 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    if num_columns is not None and (path.suffix.lower() != ".bin" or num_columns < 3):
        raise ValueError(f"num_columns is for .bin files, and at least 3, got {num_columns} for {path}")
    reader = choose_reader(path)
    with errors_of(path):
        stored, faces = reader(path) if num_columns is None else read_bin(path, num_columns)
        if faces is not None:
            finite_rows(stored, path, rows="vertices", way_out="repair the mesh")
        else:
            stored = stored[finite_rows(stored, path, drop_invalid)]
        points = stored
        if faces is not None:
            generator = np.random.default_rng(seed)
            points = sample_surface(stored, faces, num_points or DEFAULT_MESH_POINTS, generator)
    check_size(len(points), path)
    points, shift = shift_to_float32(points, path)
    if (shift.any() or stored.dtype == np.float32) and _is_blurred(stored):
        warnings.warn(_BLURRED, stacklevel=3)
    return points, shift


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Turn what goes wrong in reading a file into a `PointCloudError` that names it, for `skip_bad_files` to catch.

    The import of a library is left as it is.
    """
    try:
        yield
    except PointCloudError as error:
        if str(path) in str(error):
            raise
        raise PointCloudError(f"{path}: {error}") from None
    except OSError as error:
        raise PointCloudError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise PointCloudError(f"{path}: does not fit in memory, or is broken") from error
    except ImportError:
        raise
    except Exception as error:
        raise PointCloudError(f"{path}: cannot be read; broken? {type(error).__name__}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of libraries in Rust, as lazrs
            raise
        raise PointCloudError(f"{path}: cannot be read; broken? Its decompressor gave up: {error}") from None


def choose_reader(path: Path) -> Reader:
    """Choose the reader of a file by the ending of its name; a file that cannot be one of that kind is an error."""
    if path.is_dir():
        raise PointCloudError(f"{path}: is a folder; give a file, or load it as a data set with load_dataset")
    if not path.is_file():
        raise PointCloudError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise PointCloudError(
            f"{path}: files ending with {path.suffix or 'nothing'} are not read; readable are "
            f"{', '.join(sorted(READERS))}"
        )
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise PointCloudError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not head:
        raise PointCloudError(f"{path}: is empty (0 bytes)")
    found = next((name for signature, name in _SIGNATURES if head.startswith(signature)), None)
    if found and found != _SAME_SIGNATURE.get(suffix, suffix):
        raise PointCloudError(f"{path}: its content is that of a {found} file; rename it")
    return READERS[suffix]


def finite_rows(
    values: np.ndarray,
    where: object,
    drop_invalid: bool = False,
    *,
    what: str = "coordinates",
    rows: str = "points",
    way_out: str = "drop_invalid=True (--drop_invalid) leaves them out",
) -> np.ndarray | slice:
    """Choose the rows of finite numbers; others are an error unless they may be dropped.

    The error names `where`, such as a file; `what` the numbers and the `rows` are; and the `way_out`.
    """
    finite = np.isfinite(values) if values.dtype.kind == "f" else np.True_
    if finite.all():  # ten times as fast as along rows of 3
        return slice(None)
    finite = finite.reshape(len(values), -1).all(axis=1)
    if not drop_invalid:
        raise PointCloudError(
            f"{where}: {int((~finite).sum())} of {len(finite)} {rows} have NaN or infinite {what}, the first is "
            f"number {int((~finite).argmax())} (counted from 0); {way_out}"
        )
    return finite


def check_size(number: int, where: object, what: str = "a cloud", least: int = 2) -> None:
    """Refuse a cloud or the like of too few points; the error names `where`."""
    if number < least:
        raise PointCloudError(f"{where}: holds {number} point{'s' * (number != 1)}; {what} has at least {least}")


def to_float32(points: np.ndarray, where: object) -> np.ndarray:
    """Convert to float32 as `shift_to_float32`, with a warning where points are shifted."""
    if _is_blurred(points):
        warnings.warn(_BLURRED, stacklevel=3)
    points, shift = shift_to_float32(points, where)
    if shift.any():
        warnings.warn(_SHIFTED, stacklevel=3)
    return points


def shift_to_float32(points: np.ndarray, where: object) -> tuple[np.ndarray, np.ndarray]:
    """Convert points of shape `(num_points, 3)` to float32, shifted where float32 would otherwise lose the shape.

    Returns the points, and what must be added to them in float64, of shape `(3,)`: zeros where they are not shifted.
    """
    shift = np.zeros(3)
    if points.dtype == np.float32 or len(points) == 0:
        return np.ascontiguousarray(points, dtype=np.float32), shift
    if _lies_near(points):
        return points.astype(np.float32), shift
    low, _, largest, extent = _bounds(points)
    if max(largest, extent) > 1e30:
        raise PointCloudError(f"{where}: coordinates up to {largest:.3g} are too large for float32")
    if _is_far(largest, extent):
        shift = np.floor(low)
        points = points.astype(np.float64, copy=False) - shift
    return points.astype(np.float32), shift


def _bounds(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Give the lowest and the highest corner, the largest coordinate, and the longest side, in float64."""
    # NaN, which who gets the points may want to leave out, has no say.
    low, high = (reduce(points, axis=0).astype(np.float64) for reduce in (np.fmin.reduce, np.fmax.reduce))
    return low, high, float(max(abs(low).max(), abs(high).max())), float((high - low).max())


def _is_far(largest: float, extent: float) -> bool:
    # The step between neighbouring float32 numbers should stay below a 10,000th of the size of the cloud.
    return extent > 0 and largest * _EPSILON > extent * 1e-4


def _lies_near(points: np.ndarray) -> bool:
    """Return quickly for most clouds that they are not far from the origin, by the distance of two of their points."""
    one, other = points[0].tolist(), points[len(points) // 2].tolist()
    distance = max(abs(first - second) for first, second in zip(one, other, strict=True))
    largest = max(-float(points.min()), float(points.max()))
    return largest < 1e30 and distance > 0 and not _is_far(largest, distance)


def _is_blurred(points: np.ndarray) -> bool:
    """Return whether points have come through float32, of whatever type they are, and lost their shape there."""
    if len(points) == 0 or points.dtype.kind != "f" or _lies_near(points):
        return False
    low, high, largest, extent = _bounds(points)
    if not _is_far(largest, extent) or points.dtype == np.float32:
        return _is_far(largest, extent)
    far = points[:, [_is_far(max(-low[axis], high[axis]), extent) for axis in range(3)]]
    # A few numbers, or whole ones, are of single precision by chance.
    single = len(points) >= _MIN_BLURRED and (far == far.astype(np.float32)).all()
    return bool(single and (far != np.round(far)).any())


def write_point_cloud(
    path: str | os.PathLike,
    points: np.ndarray,
    colors: np.ndarray | None = None,
    labels: np.ndarray | None = None,
) -> None:
    """Write a cloud to a .ply (binary, little endian) or .npy file.

    The file appears whole or not at all: it is written under a temporary name first.

    Args:
        path: The file, ending with .ply or .npy; an existing one is replaced.
        points: Coordinates of shape `(num_points, 3)`, array or tensor, any unit; written as float32, or as float64
            where float32 would lose the shape far from the origin.
        colors: Red, green and blue of shape `(num_points, 3)`: integers from 0 to 255, or floats from 0 to 1. Only for
            .ply.
        labels: A whole number for each point, of shape `(num_points,)`: the vertex property "label" of a .ply, the
            fourth column of an .npy, which is of float64 where float32 would round a label.

    Raises:
        PointCloudError: If the ending or a shape is another, or coordinates, colours or labels are out of range.
    """
    path = Path(path)
    points = as_array(points)
    if points.ndim != 2 or points.shape[1] != 3:
        raise PointCloudError(f"{path}: points to write must be of shape (num_points, 3), got {points.shape}")
    suffix = path.suffix.lower()
    if suffix not in (".ply", ".npy"):
        raise PointCloudError(f"{path}: clouds are written as .ply or .npy, got {path.suffix or 'no ending'}")
    shift = shift_to_float32(points, path)[1]
    points = points.astype(np.float64 if shift.any() else np.float32, copy=False)
    if colors is not None:
        if suffix == ".npy":
            raise PointCloudError(f"{path}: colours are written to .ply files only")
        colors = _color_bytes(colors, points, path)
    if labels is not None:
        labels = _label_numbers(labels, points, path)
    with atomic_write(path) as file:
        if suffix == ".npy":
            rows = points
            if labels is not None:
                exact = np.float32 if abs(labels.astype(np.float64)).max(initial=0) <= 2**24 else np.float64
                dtype = np.result_type(points, exact)
                rows = np.column_stack([points.astype(dtype), labels.astype(dtype)])
            np.save(file, rows, allow_pickle=False)
        else:
            file.write(_ply_bytes(points, colors, labels))


def as_array(values: Any) -> np.ndarray:
    """Give an array or a tensor on any device as an array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _color_bytes(colors: np.ndarray, points: np.ndarray, path: Path) -> np.ndarray:
    colors = as_array(colors)
    if colors.shape != points.shape:
        raise PointCloudError(f"{path}: colours must be of shape {points.shape}, got {colors.shape}")
    is_float = colors.dtype.kind == "f"
    top = 1.0 if is_float else 255
    if colors.size and not (colors.min() >= 0 and colors.max() <= top):
        raise PointCloudError(
            f"{path}: {'float' if is_float else 'integer'} colours go from 0 to {top}, "
            f"got {colors.min()} to {colors.max()}"
        )
    return (np.round(colors * 255) if is_float else colors).astype(np.uint8)


def _label_numbers(labels: np.ndarray, points: np.ndarray, path: Path) -> np.ndarray:
    labels = as_array(labels)
    if labels.shape != points.shape[:1] or labels.dtype.kind not in "iu":
        raise PointCloudError(
            f"{path}: labels must be integers of shape {points.shape[:1]}, got {labels.dtype} of {labels.shape}"
        )
    lowest, highest = (-(2**31), 2**31 - 1) if path.suffix.lower() == ".ply" else (-(2**53), 2**53)
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < lowest or high > highest:
        raise PointCloudError(
            f"{path}: labels go from {low} to {high}, and a {path.suffix} file keeps {lowest} to {highest}; number "
            "them anew" + (", or write an .npy" if highest < 2**53 else "")
        )
    return labels


def _ply_bytes(points: np.ndarray, colors: np.ndarray | None, labels: np.ndarray | None) -> bytes:
    kind, word = ("<f8", "double") if points.dtype == np.float64 else ("<f4", "float")
    # Name, type here, type in the header, values.
    columns = [(axis, kind, word, column) for axis, column in zip("xyz", points.T, strict=True)]
    if colors is not None:
        names = ("red", "green", "blue")
        columns += [(name, "u1", "uchar", column) for name, column in zip(names, colors.T, strict=True)]
    if labels is not None:
        columns.append(("label", "<i4", "int", labels))
    rows = np.empty(len(points), dtype=[(name, kind) for name, kind, _, _ in columns])
    for name, _, _, column in columns:
        rows[name] = column
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property {word} {name}" for name, _, word, _ in columns]
    return "\n".join([*header, "end_header", ""]).encode("ascii") + rows.tobytes()
