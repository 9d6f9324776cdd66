"""Scans with the class of each point to files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..data.errors import PointCloudError, import_optional
from ..data.files import atomic_write
from ..data.formats.scans import read_las_chunks
from ..data.readers import write_point_cloud
from ..data.scenes import Scene

_LAS = (".las", ".laz")
_TEXT = {".txt": " ", ".csv": ","}
_ENDINGS = (*_LAS, ".ply", ".npy", *_TEXT)
_CHUNK = 1 << 20
# Point formats 0 to 5 of .las files have 5 bits for the class.
_FEW_CLASSES, _MANY_CLASSES = 31, 255
_NAME_BYTES = 15


def write_labelled_scan(
    path: Path,
    scene: Scene,
    values: np.ndarray,
    names: Mapping[int, str],
    *,
    class_colors: np.ndarray,
    source: Path | None = None,
) -> None:
    """Write the points of a scan with a number for the class of each; the file appears whole or not at all.

    Args:
        path: The file, of the ending .las, .laz, .ply, .npy, .txt or .csv.
        scene: The points.
        values: The number of each point's class, of shape `(num_points,)`.
        names: Names of the classes by number, for the headers that have room for them.
        class_colors: The colour of each point's class, uint8, of shape `(num_points, 3)`, for .ply files.
        source: File that the points were read from; of a .las or .laz file all dimensions are kept in another.

    Raises:
        PointCloudError: If the ending is another, or a number does not fit the format.
    """
    suffix = path.suffix.lower()
    if suffix in _LAS:
        if source is not None and source.suffix.lower() in _LAS:
            _write_las_like(path, source, values, names)
        else:
            _write_las(path, scene, values, names)
    elif suffix in _TEXT:
        _write_text(path, scene, values, _TEXT[suffix])
    elif suffix in (".ply", ".npy"):
        points = scene.points + scene.origin if scene.origin.any() else scene.points
        write_point_cloud(path, points, class_colors if suffix == ".ply" else None, values)
    else:
        raise PointCloudError(
            f"{path}: labelled scans are written as {', '.join(_ENDINGS)}, got {path.suffix or 'no ending'}"
        )


def _write_las_like(path: Path, source: Path, values: np.ndarray, names: Mapping[int, str]) -> None:
    """Copy a .las or .laz file piece by piece, with another classification."""
    laspy = _laspy(path)
    with laspy.open(source) as reader:
        header = reader.header
        header.vlrs = laspy.vlrs.vlrlist.VLRList([vlr for vlr in header.vlrs if not _is_lookup(vlr)])
    if header.point_count != len(values):
        raise PointCloudError(
            f"{path}: {len(values)} points have a class, and {source} has {header.point_count}; write a .ply file"
        )
    _check_values(path, values, header.point_format.id)
    header.vlrs.append(_lookup(names))
    with atomic_write(path) as file, _writer(file, header, path) as writer:
        start = 0
        for chunk in read_las_chunks(source):
            chunk.classification = values[start : start + len(chunk)]
            start += len(chunk)
            writer.write_points(chunk)


def _write_las(path: Path, scene: Scene, values: np.ndarray, names: Mapping[int, str]) -> None:
    laspy = _laspy(path)
    header = laspy.LasHeader(point_format=6 if scene.colors is None else 7, version="1.4")
    _check_values(path, values, header.point_format.id)
    # A step of a tenth of a millimetre, or what 32 bits have room for.
    extent = np.ptp(scene.points, axis=0).astype(np.float64)
    header.scales = np.maximum(1e-4, extent / 2**31)
    header.offsets = np.floor(scene.points.min(axis=0)) + scene.origin
    header.vlrs.append(_lookup(names))
    with atomic_write(path) as file, _writer(file, header, path) as writer:
        for start in range(0, len(scene), _CHUNK):
            piece = slice(start, start + _CHUNK)
            points = scene.points[piece] + scene.origin
            chunk = laspy.ScaleAwarePointRecord.zeros(len(points), header=header)
            chunk.x, chunk.y, chunk.z = points.T
            chunk.classification = values[piece]
            if scene.colors is not None:
                chunk.red, chunk.green, chunk.blue = scene.colors[piece].T.astype(np.uint16) * 257
            writer.write_points(chunk)


def _laspy(path: Path):
    laspy = import_optional("laspy", "Writing .las and .laz files")
    if path.suffix.lower() == ".laz" and not laspy.LazBackend.detect_available():
        import_optional("lazrs", "Writing .laz files")
    return laspy


def _writer(file, header, path: Path):
    return _laspy(path).open(file, mode="w", header=header, do_compress=path.suffix.lower() == ".laz", closefd=False)


def _check_values(path: Path, values: np.ndarray, point_format: int) -> None:
    most = _FEW_CLASSES if point_format < 6 else _MANY_CLASSES
    if len(values) and not 0 <= values.min() <= values.max() <= most:
        raise PointCloudError(
            f"{path}: the classes have numbers up to {values.max()}, and point format {point_format} has room for "
            f"0 to {most}; write a .ply file"
        )


def _is_lookup(vlr) -> bool:
    return vlr.user_id == "LASF_Spec" and vlr.record_id == 0


def _lookup(names: Mapping[int, str]):
    """Make the record of a .las file that names the classes: a byte for the number, 15 for the name."""
    laspy = import_optional("laspy", "Writing .las and .laz files")
    data = io.BytesIO()
    for number in range(256):
        name = names.get(number, "").encode("ascii", errors="replace")[:_NAME_BYTES]
        data.write(bytes([number]) + name.ljust(_NAME_BYTES, b"\0"))
    return laspy.VLR("LASF_Spec", 0, "Classification lookup", data.getvalue())


def _write_text(path: Path, scene: Scene, values: np.ndarray, mark: str) -> None:
    names = ["x", "y", "z", *(() if scene.colors is None else ("red", "green", "blue")), "label"]
    formats = mark.join(["%.4f"] * 3 + ["%d"] * (len(names) - 3))
    with atomic_write(path) as file:
        file.write((mark.join(names) + "\n").encode())
        for start in range(0, len(scene), _CHUNK):
            piece = slice(start, start + _CHUNK)
            columns = [scene.points[piece] + scene.origin, values[piece, None]]
            if scene.colors is not None:
                columns.insert(1, scene.colors[piece])
            np.savetxt(file, np.concatenate(columns, axis=1), fmt=formats)
