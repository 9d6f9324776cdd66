"""The .pcd format of the Point Cloud Library: ascii, binary and binary_compressed (LZF)."""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import PointCloudError, shorten
from .columns import Pick
from .rows import parse_rows, split_lines, to_utf8

_TYPES = {
    **{("F", 4): "<f4", ("F", 8): "<f8"},
    **{("I", 1): "<i1", ("I", 2): "<i2", ("I", 4): "<i4", ("I", 8): "<i8"},
    **{("U", 1): "<u1", ("U", 2): "<u2", ("U", 4): "<u4", ("U", 8): "<u8"},
}
_MAX_HEADER = 1 << 16
_MAX_COUNT = 1 << 16


@dataclass
class _Header:
    fields: list[str]
    dtype: np.dtype  # of a point, with the place of a field for its name
    num_points: int
    encoding: str
    body: int  # offset of the data in the file
    num_lines: int
    extra: list[int] = dataclasses.field(default_factory=list)  # fields that are read as well as x, y and z

    @property
    def wanted(self) -> list[int]:
        return [*(self.fields.index(axis) for axis in "xyz"), *self.extra]

    @property
    def counts(self) -> list[int]:
        return [self.dtype[place].shape[0] for place in range(len(self.fields))]


def read_pcd(path: Path, pick: Pick | None = None) -> tuple[np.ndarray, None]:
    """Read the points of a .pcd file in its type, those that the sensor did not measure (NaN) included.

    `pick` chooses, among the names of the fields of one number, those that become columns after x, y and z.
    """
    data = to_utf8(path.read_bytes())
    if b"\n" not in data[:_MAX_HEADER]:
        data = data.replace(b"\r", b"\n")
    header = _read_header(data)
    if pick is not None:
        # A field of several numbers has no name here, so that it is not picked.
        names = zip(header.fields, header.counts, strict=True)
        header.extra = pick([name if count == 1 else "" for name, count in names])
    if header.encoding == "ascii":
        return _read_ascii(data, header), None
    if header.encoding == "binary":
        return _read_binary(data, header), None
    return _read_compressed(data, header), None


def _read_header(data: bytes) -> _Header:
    values: dict[str, list[str]] = {}
    offset, number = 0, 0
    while "DATA" not in values:
        end = data.find(b"\n", offset, _MAX_HEADER)
        if end < 0:
            raise PointCloudError("the header of a .pcd file ends with a DATA line, none found; truncated?")
        words = data[offset:end].decode("latin-1").split()
        offset, number = end + 1, number + 1
        if words and not words[0].startswith("#"):
            values[words[0].upper()] = words[1:]
    if "COLUMNS" in values:  # as version 0.5 calls them
        values.setdefault("FIELDS", values.pop("COLUMNS"))
    missing = [key for key in ("FIELDS", "SIZE", "TYPE") if key not in values]
    if missing:
        raise PointCloudError(f"the header has no {', '.join(missing)}; it has {sorted(values)}")
    fields = [name.lower() for name in values["FIELDS"]]
    kinds, sizes = values["TYPE"], values["SIZE"]
    counts = values.get("COUNT", ["1"] * len(fields))
    if not len(fields) == len(kinds) == len(sizes) == len(counts):
        raise PointCloudError(
            f"FIELDS, SIZE, TYPE and COUNT must be of one length, got "
            f"{len(fields)}, {len(sizes)}, {len(kinds)} and {len(counts)}"
        )
    try:
        types = [np.dtype(_TYPES[kind.upper(), int(size)]) for kind, size in zip(kinds, sizes, strict=True)]
        counts = [int(count) for count in counts]
        area = None
        if "WIDTH" in values:
            area = int(values["WIDTH"][0]) * int(values.get("HEIGHT", ["1"])[0])
        num_points = int(values["POINTS"][0]) if "POINTS" in values else area or 0
    except (KeyError, ValueError, IndexError):
        raise PointCloudError(
            f"header that cannot be read: SIZE {shorten(sizes)}, TYPE {shorten(kinds)}, COUNT "
            f"{shorten(counts)}, POINTS {shorten(values.get('POINTS'))}"
        ) from None
    if num_points < 0 or any(not 0 <= count <= _MAX_COUNT for count in counts):
        raise PointCloudError(f"POINTS and COUNT cannot be {num_points} and {counts}")
    if area is not None and area != num_points:
        raise PointCloudError(
            f"cannot tell how many points it holds: POINTS says {num_points}, WIDTH and HEIGHT say {area}"
        )
    for axis in "xyz":
        if axis not in fields or counts[fields.index(axis)] != 1:
            raise PointCloudError(f"needs the fields x, y and z, one number each; it has {shorten(fields)}")
    encoding = (values["DATA"] or [""])[0].lower()
    if encoding not in ("ascii", "binary", "binary_compressed"):
        raise PointCloudError(f"DATA must be ascii, binary or binary_compressed, got {shorten(encoding)}")
    dtype = np.dtype([(str(place), *item) for place, item in enumerate(zip(types, zip(counts), strict=True))])
    return _Header(fields, dtype, num_points, encoding, offset, number)


def _truncated(header: _Header, found: str) -> PointCloudError:
    return PointCloudError(f"the header promises {header.num_points} points, the file holds {found}; truncated?")


def _check_end(header: _Header, rest: bytes) -> None:
    if rest.strip(b"\0\r\n \x1a"):
        raise PointCloudError(
            f"{len(rest)} bytes follow the {header.num_points} points of {header.dtype.itemsize} bytes that its "
            "header promises; POINTS or SIZE may be wrong"
        )


def _read_ascii(data: bytes, header: _Header) -> np.ndarray:
    lines = [line for line in split_lines(data[header.body :].decode("latin-1")) if line.strip()]
    if len(lines) < header.num_points:
        raise _truncated(header, f"{len(lines)} rows")
    if len(lines) > header.num_points:
        raise PointCloudError(f"the header promises {header.num_points} points, {len(lines)} rows follow")
    starts = np.cumsum([0, *header.counts])
    return parse_rows(lines, [int(starts[place]) for place in header.wanted], header.num_lines + 1)


def _read_binary(data: bytes, header: _Header) -> np.ndarray:
    available = len(data) - header.body
    if header.num_points * header.dtype.itemsize > available:
        raise _truncated(header, f"{available} bytes, of {header.dtype.itemsize} a point")
    rows = np.frombuffer(data, header.dtype, header.num_points, header.body)
    _check_end(header, data[header.body + rows.nbytes :])
    return np.stack([rows[str(place)][:, 0] for place in header.wanted], axis=1)


def _read_compressed(data: bytes, header: _Header) -> np.ndarray:
    if len(data) < header.body + 8:
        raise _truncated(header, "no sizes of the compressed data")
    compressed_size, size = struct.unpack_from("<II", data, header.body)
    compressed = data[header.body + 8 : header.body + 8 + compressed_size]
    if len(compressed) < compressed_size:
        raise _truncated(header, f"{len(compressed)} of {compressed_size} compressed bytes")
    if size < header.num_points * header.dtype.itemsize:
        raise _truncated(header, f"{size} bytes, of {header.dtype.itemsize} a point")
    _check_end(header, data[header.body + 8 + compressed_size :])
    try:
        plain = lzf_decompress(compressed, size)
    except ValueError as error:
        raise PointCloudError(f"the compressed data are broken: {error}") from None
    # Compressed clouds are stored field by field, so that similar bytes are neighbours.
    offset, columns = 0, {}
    for place in range(len(header.fields)):
        dtype = header.dtype[place]
        if place in header.wanted:
            columns[place] = np.frombuffer(plain, dtype.base, header.num_points, offset)
        offset += dtype.itemsize * header.num_points
    _check_end(header, plain[offset:])
    return np.stack([columns[place] for place in header.wanted], axis=1)


def lzf_decompress(data: bytes, size: int) -> bytes:
    """Decompress LZF, the format of Marc Lehmann's LibLZF, to `size` bytes; a ValueError if the data do not give that.

    The data are runs of literals (control byte below 32) and copies of earlier output.
    """
    output = bytearray()
    position, end = 0, len(data)
    try:
        while position < end:
            control = data[position]
            position += 1
            if control < 32:
                if position + control + 1 > end:
                    raise ValueError("the data end within a run")
                output += data[position : position + control + 1]
                position += control + 1
            else:
                length = control >> 5
                if length == 7:
                    length += data[position]
                    position += 1
                length += 2
                start = len(output) - ((control & 31) << 8) - data[position] - 1
                position += 1
                if start < 0:
                    raise ValueError("a copy points before the start")
                piece = output[start : start + length]
                # A copy may overlap what it writes: the piece then repeats.
                output += piece if len(piece) == length else (piece * (length // len(piece) + 1))[:length]
            if len(output) > size:
                raise ValueError(f"more than the {size} bytes that the header promises")
    except IndexError:
        raise ValueError("the data end within a copy") from None
    if len(output) != size:
        raise ValueError(f"{len(output)} bytes, and the header promises {size}")
    return bytes(output)
