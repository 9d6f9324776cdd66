"""Scans as surveys and vehicles write them: .las, .laz, .e57, and .bin of KITTI and nuScenes."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import PointCloudError, import_optional
from .arrays import first_sentence

if TYPE_CHECKING:
    from laspy import ScaleAwarePointRecord

_CHUNK_BYTES = 32 << 20
_LASZIP_RECORD = 22204
# Layers of the kinds of items that version 1.4 has: point, colours, colours with infrared, waveform; a byte has one.
_LAYERS, _EXTRA_BYTES = {10: 9, 11: 1, 12: 2, 13: 1}, 14
_HEADER = 227  # bytes of the header of the first version


def read_las(path: Path, labels: bool = False) -> tuple[np.ndarray, None]:
    """Read a .las or .laz file: coordinates scaled and shifted as its header says, in its unit, float64.

    The points are of shape `(num_points, 3)`, or `(num_points, 4)` with the classification as `labels`.
    """
    parts = [
        np.vstack([chunk.x, chunk.y, chunk.z, *([chunk.classification] if labels else [])]).T
        for chunk in read_las_chunks(path)
    ]
    points = parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, 3 + labels)), *parts])
    if labels and len(points) and not points[:, 3].any():
        raise PointCloudError(
            f"{path}: no point is classified: the classification of all is 0, created but never classified"
        )
    return points, None


def read_las_chunks(path: Path) -> Iterator[ScaleAwarePointRecord]:
    """Read a .las or .laz file piece by piece, so that memory does not grow with the number of its points.

    Yields points as laspy gives them, with `x`, `y`, `z` in the unit of the file and all other dimensions.
    """
    laspy = import_optional("laspy", "Reading .las and .laz files")
    if path.suffix.lower() == ".laz" and not laspy.LazBackend.detect_available():
        import_optional("lazrs", "Reading .laz files")
    _check_las_header(path)
    found = 0
    try:
        with laspy.open(path, read_evlrs=False) as reader:
            promised = reader.header.point_count
            # Not all at once: a damaged header may promise any number of points.
            step = max(1, _CHUNK_BYTES // max(1, reader.header.point_format.size))
            for chunk in reader.chunk_iterator(step):
                found += len(chunk)
                yield chunk
    except ImportError:
        raise
    except Exception as error:  # laspy and its decompressor have no common class of errors
        raise PointCloudError(f"{path}: not a readable {path.suffix} file: {first_sentence(error)}") from None
    if found != promised:
        raise PointCloudError(f"{path}: the header promises {promised} points, the file holds {found}; truncated?")


def _check_las_header(path: Path) -> None:
    """Refuse headers that promise more than the file has, which laspy would believe for hours or gigabytes."""
    with open(path, "rb") as file:
        head = file.read(375)
    size = path.stat().st_size
    if head[:4] != b"LASF" or len(head) < _HEADER:
        raise PointCloudError(
            f"{path}: not a readable {path.suffix} file: it does not start with the header of one; truncated?"
        )
    header_size, start, num_records, kind, length, points = struct.unpack_from("<HIIBHI", head, 94)
    compressed, minor = bool(kind & 0xC0), head[25]
    end = size
    if minor >= 4 and len(head) >= 375:
        first, count = struct.unpack_from("<QI", head, 235)
        points = struct.unpack_from("<Q", head, 247)[0] or points
        if count and first + 60 * count > size:
            raise PointCloudError(
                f"{path}: its header promises {count} records after byte {first}, 60 bytes or more each, and the file "
                f"has {size} bytes; damaged?"
            )
        end = first if count and first >= start else size
    elif minor == 3 and len(head) >= 235:
        waves = struct.unpack_from("<Q", head, 227)[0]
        end = waves if start <= waves <= size and waves else size
    if not _HEADER <= header_size <= start <= size or header_size + 54 * num_records > start:
        raise PointCloudError(
            f"{path}: its header promises {num_records} records of 54 bytes or more between the bytes {header_size} "
            f"and {start} of {size}; damaged or truncated?"
        )
    room = end - start
    if compressed:
        _check_chunks(path, header_size, num_records, start, length)
    if not compressed and (points * length > room or (length and room - points * length >= length)):
        raise PointCloudError(
            f"{path}: its header promises {points} points of {length} bytes, the file has room for "
            f"{room // max(length, 1)}; {'truncated' if points * length > room else 'was it closed properly'}?"
        )


def _check_chunks(path: Path, header_size: int, num_records: int, start: int, length: int) -> None:
    """Refuse sizes within the compressed points that go beyond the file, for which lazrs would take the memory."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(header_size)
        layers = _count_layers(file.read(start - header_size), num_records)
        table = int.from_bytes(file.read(8), "little", signed=True)
        if table == -1:  # written at the end where it could not be written first
            file.seek(max(size - 8, 0))
            table = int.from_bytes(file.read(8), "little", signed=True)
        if start < table <= size - 8:
            file.seek(table + 4)
            chunks = int.from_bytes(file.read(4), "little")
            if chunks > size // 20:
                raise PointCloudError(f"{path}: its table promises {chunks} chunks in {size} bytes; damaged?")
        # A chunk: its first point, the number of its points, the sizes of its layers, the layers.
        place, end = start + 8, table if start < table <= size else size
        while layers and place < end:
            file.seek(place + length + 4)
            sizes = np.frombuffer(file.read(4 * layers), dtype="<u4", count=-1)
            place += length + 4 + 4 * layers + int(sizes.sum(dtype=np.int64))
            if len(sizes) < layers or place > size:
                raise PointCloudError(f"{path}: its compressed points go beyond its {size} bytes; truncated?")


def _count_layers(records: bytes, num_records: int) -> int:
    """Count the layers of a chunk of points by the record of LASzip; 0 where points are not compressed in layers."""
    place = 0
    for _ in range(num_records):
        user, number, length = struct.unpack_from("<16sHH", records.ljust(place + 54, b"\0"), place + 2)
        record = records[place + 54 : place + 54 + length]
        if user.rstrip(b"\0") == b"laszip encoded" and number == _LASZIP_RECORD and len(record) >= 34:
            items = np.frombuffer(record[34 : 34 + len(record[34:]) // 6 * 6], dtype="<u2").reshape(-1, 3)
            items = items[: int.from_bytes(record[32:34], "little")]
            return sum(_LAYERS.get(int(kind), int(width) if kind == _EXTRA_BYTES else 0) for kind, width, _ in items)
        place += 54 + length
    return 0


def read_e57(path: Path) -> tuple[np.ndarray, None]:
    """Read all scans of an .e57 file, each in its place: points of shape `(num_points, 3)`, float64."""
    with open(path, "rb") as file:
        if file.read(8) != b"ASTM-E57":
            raise PointCloudError(f"{path}: not a readable .e57 file: it does not start with ASTM-E57")
    try:
        pye57 = importlib.import_module("pye57")
    except ImportError as error:
        raise ImportError(
            f"{path}: reading .e57 files needs pye57: pip install pye57; or convert it with PDAL: "
            f"pdal translate {path.name} {path.stem}.laz"
        ) from error
    try:
        file = pye57.E57(str(path))
        scans = [file.read_scan(index, ignore_missing_fields=True) for index in range(file.scan_count)]
        axes = ("cartesianX", "cartesianY", "cartesianZ")
        parts = [np.stack([scan[axis] for axis in axes], axis=1) for scan in scans if set(axes) <= set(scan)]
    except Exception as error:  # pye57 has no common class of errors
        raise PointCloudError(f"{path}: not a readable .e57 file: {first_sentence(error)}") from None
    if not parts:
        raise PointCloudError(f"{path}: none of its {len(scans)} scans has Cartesian coordinates")
    return np.concatenate(parts).astype(np.float64), None


def read_bin(path: Path, num_columns: int | None = None) -> tuple[np.ndarray, None]:
    """Read a .bin file, float32 numbers without a header, `num_columns` a point, of which x, y, z come first."""
    if num_columns is None:
        size = path.stat().st_size
        fitting = [columns for columns in (3, 4, 5, 6) if size % (4 * columns) == 0]
        raise PointCloudError(
            f"{path}: a .bin file does not say how many numbers a point has: give num_columns=4 for KITTI (x, y, z, "
            f"reflectance), 5 for nuScenes (ring as well); its {size} bytes fit {fitting or 'none of 3 to 6'}"
        )
    return read_floats(path, num_columns)[:, :3].astype(np.float32), None


def read_floats(path: Path, num_columns: int) -> np.ndarray:
    """Read the float32 numbers of a .bin file, of shape `(num_points, num_columns)`."""
    size = path.stat().st_size
    if size % (4 * num_columns):
        raise PointCloudError(
            f"{path}: its {size} bytes are not a whole number of points of {num_columns} float32 numbers; truncated, "
            "or another number of columns?"
        )
    return np.fromfile(path, dtype="<f4").reshape(-1, num_columns)
