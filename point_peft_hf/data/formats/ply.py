"""The .ply format, ascii and binary, with any extra properties; clouds and meshes."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import PointCloudError, shorten
from .columns import Pick
from .encoding import split_lines, to_utf8
from .polygons import strip_to_triangles, triangulate
from .rows import parse_rows

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"},
    **{"int32": "i4", "uint32": "u4", "int64": "i8", "uint64": "u8", "long": "i8", "ulong": "u8"},
    **{"float16": "f2", "half": "f2", "float32": "f4", "float64": "f8"},
}
_STRUCT = {
    **{"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"},
    **{"f2": "e", "f4": "f", "f8": "d"},
}
_CORNER_NAMES = ("vertex_indices", "vertex_index", "vertex_indexes", "vertices", "indices")
_MAX_HEADER = 1 << 20
_END_HEADER = re.compile(rb"(?<=[\r\n])[ \t]*end_header(?=\s|$)", re.IGNORECASE)


@dataclass
class _Property:
    name: str
    type: str
    count_type: str | None = None  # type of the length, for a list


@dataclass
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)
    extra: list[int] = field(default_factory=list)  # columns that are read beside x, y and z

    @property
    def vertex_columns(self) -> list[int | None]:
        names = [item.name.lower() for item in self.properties]
        columns = [names.index(axis) if axis in names else None for axis in "xyz"]
        return [*columns, *self.extra]

    @property
    def has_lists(self) -> bool:
        return any(item.count_type for item in self.properties)

    @property
    def corners(self) -> int | None:
        """The column with lists of vertex indices; `tristrips` and the grids of range scanners have one as well."""
        lists = [index for index, item in enumerate(self.properties) if item.count_type and item.type[0] in "iu"]
        named = [index for index in lists if self.properties[index].name.lower() in _CORNER_NAMES]
        if self.name == "face" and not named and len(lists) == 1:
            named = lists
        return named[0] if named and self.name != "vertex" else None


def read_ply(path: Path, pick: Pick | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a .ply file, ascii or binary: points or vertices, and triangles `(num_triangles, 3)` or None.

    `pick` chooses, among the names of the vertex properties, those that become columns after x, y and z.
    """
    data = path.read_bytes()
    if data[:3].lower() != b"ply":
        data = to_utf8(data)
    kind, elements, body, line = _read_header(data, path)
    vertex = next((element for element in elements if element.name == "vertex"), None)
    columns = [None] if vertex is None else vertex.vertex_columns
    if None in columns:
        found = {element.name: [item.name for item in element.properties] for element in elements}
        raise PointCloudError(f"{path}: no element 'vertex' with properties x, y and z; its header has {found}")
    if pick is not None:
        vertex.extra = pick([item.name for item in vertex.properties])
    lists = [item.name for item in map(vertex.properties.__getitem__, vertex.vertex_columns) if item.count_type]
    if lists:
        raise PointCloudError(f"{path}: the properties must be one number each, got lists: {', '.join(lists)}")
    for element in elements:
        if element.name == "face" and element.count and element.corners is None:
            found = [item.name for item in element.properties]
            raise PointCloudError(f"{path}: its faces have no list of vertex_indices; their properties are {found}")
    if kind == "ascii":
        return _read_ascii(data[body:], elements, path, line)
    return _read_binary(data, body, elements, "<" if kind == "binary_little_endian" else ">", path)


def _read_header(data: bytes, path: Path) -> tuple[str, list[_Element], int, int]:
    """Read the header; gives the format, the elements, and where the body starts: its offset and its line."""
    if data[:3].lower() != b"ply":
        raise PointCloudError(f"{path}: a .ply file starts with 'ply', this one with {shorten(data[:12])}")
    break_at = 3 + len(data[3:8]) - len(data[3:8].lstrip(b" \t"))
    mark = next((mark for mark in (b"\r\n", b"\r", b"\n") if data.startswith(mark, break_at)), b"\n")
    end = _END_HEADER.search(data, 0, _MAX_HEADER)
    if end is None:
        raise PointCloudError(f"{path}: the header has no 'end_header'; truncated?")
    offset = data.find(mark, end.end())
    offset = len(data) if offset < 0 else offset + len(mark)
    lines = data[: end.start()].decode("latin-1").split(mark.decode())
    kind, elements = "", []
    for number, line in enumerate(lines[1:], start=2):
        words = line.split()
        keyword = words[0].lower() if words else "comment"
        try:
            if keyword in ("comment", "obj_info"):
                continue
            if keyword == "format":
                kind = words[1].lower()
            elif keyword == "element":
                elements.append(_Element(words[1].lower(), int(words[2])))
            elif keyword == "property" and words[1].lower() == "list":
                kinds = [_TYPES[word.lower()] for word in words[2:4]]
                elements[-1].properties.append(_Property(words[4], kinds[1], kinds[0]))
            elif keyword == "property":
                elements[-1].properties.append(_Property(words[2], _TYPES[words[1].lower()]))
            else:
                raise ValueError("unknown keyword")
            if keyword == "element" and elements[-1].count < 0:
                raise ValueError("negative count")
        except (ValueError, IndexError, KeyError):
            raise PointCloudError(f"{path}: line {number} of the header cannot be read: {shorten(line)}") from None
    if kind not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise PointCloudError(f"{path}: format must be ascii, binary_little_endian or binary_big_endian, got {kind!r}")
    return kind, elements, offset, len(lines) + 1


def _truncated(path: Path, element: _Element, found: int | str) -> PointCloudError:
    return PointCloudError(
        f"{path}: the header promises {element.count} of element {element.name!r}, the file holds {found}; truncated?"
    )


def _to_triangles(element: _Element, lists: list | np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Make triangles of the lists of an element, as soon as the vertices are known."""
    if "strip" in element.name:
        strips = [strip_to_triangles(strip) for strip in lists]
        return lambda vertices: np.concatenate(strips) if strips else np.empty((0, 3), dtype=np.int64)
    return lambda vertices: triangulate(lists, vertices)


def _result(points: np.ndarray, surfaces: list[Callable]) -> tuple[np.ndarray, np.ndarray | None]:
    faces = [make(points[:, :3]) for make in surfaces]
    faces = np.concatenate(faces) if faces else np.empty((0, 3), dtype=np.int64)
    return points, faces if len(faces) else None


def _read_ascii(
    body: bytes, elements: list[_Element], path: Path, first_line: int
) -> tuple[np.ndarray, np.ndarray | None]:
    lines = [line for line in split_lines(body.decode("latin-1")) if line.strip()]
    points, surfaces, start = None, [], 0
    for element in elements:
        rows = lines[start : start + element.count]
        if len(rows) < element.count:
            raise _truncated(path, element, len(rows))
        line = first_line + start
        start += element.count
        if element.name == "vertex" and points is None:
            columns = element.vertex_columns
            if any(item.count_type for item in element.properties[: max(columns)]):
                rows = [" ".join(_flat_row(row, element, columns, path, line + i)) for i, row in enumerate(rows)]
                columns = range(len(columns))
            points = parse_rows(rows, columns, path, line)
        elif element.corners is not None and rows:
            surfaces.append(_to_triangles(element, _read_lists_of_text(rows, element, path, line)))
    if start < len(lines):
        raise PointCloudError(
            f"{path}: its header promises {start} lines of data, {len(lines)} follow; is a count in the header wrong?"
        )
    return _result(points, surfaces)


def _flat_row(row: str, element: _Element, columns: list[int], path: Path, number: int) -> list[str]:
    """Give the values of some columns of a row with lists in it."""
    words, values = row.split(), []
    place = 0
    for item in element.properties:
        try:
            length = 1 + int(words[place]) if item.count_type else 1
            values.append(words[place])
        except (ValueError, IndexError):
            length = 0
        if length < 1 or place + length > len(words):
            raise PointCloudError(f"{path}: line {number}: expected {item.name!r} there, got {shorten(row.strip())}")
        place += length
    return [values[column] for column in columns]


def _read_lists_of_text(rows: list[str], element: _Element, path: Path, first_line: int) -> np.ndarray | list:
    """Read the lists of vertex indices of an ascii file."""
    corners = element.corners
    if not any(item.count_type for item in element.properties[:corners]):
        if all(row.split(None, corners + 1)[corners : corners + 1] == ["3"] for row in rows):
            return parse_rows(rows, range(corners + 1, corners + 4), path, first_line, dtype=np.int64)
    lists = []
    for offset, row in enumerate(rows):
        words, place = row.split(), 0
        try:
            for item in element.properties[:corners]:
                place += 1 + (int(words[place]) if item.count_type else 0)
            length = int(words[place])
            found = [int(word) for word in words[place + 1 : place + 1 + length]]
        except (ValueError, IndexError):
            length, found = 0, [0]
        if len(found) != length or place < 0:
            raise PointCloudError(
                f"{path}: line {first_line + offset}: expected a face, its number of corners and as many vertex "
                f"numbers, got {shorten(row.strip())}"
            )
        lists.append(found)
    return lists


def _read_binary(
    data: bytes, offset: int, elements: list[_Element], order: str, path: Path
) -> tuple[np.ndarray, np.ndarray | None]:
    points, surfaces = None, []
    for element in elements:
        if not element.has_lists:
            dtype = np.dtype([(f"{i}", order + item.type) for i, item in enumerate(element.properties)])
            size = dtype.itemsize * element.count
            if offset + size > len(data):
                raise _truncated(path, element, (len(data) - offset) // max(dtype.itemsize, 1))
            if element.name == "vertex" and points is None:
                rows = np.frombuffer(data, dtype, element.count, offset)
                points = np.stack([rows[str(column)] for column in element.vertex_columns], axis=1)
                points = points.astype(points.dtype.newbyteorder("="))
            offset += size
            continue
        uniform = _read_uniform_lists(data, offset, element, order)
        if uniform is not None:
            lists, offset = uniform
            surfaces.append(_to_triangles(element, lists))
            continue
        wanted = element.vertex_columns if element.name == "vertex" else [element.corners]
        columns, offset = _read_lists(data, offset, element, order, path, wanted)
        if element.name == "vertex" and points is None:
            points = np.array(columns, dtype=np.float64).T
        elif element.corners is not None:
            surfaces.append(_to_triangles(element, columns[0]))
    if data[offset:].strip(b"\0\r\n \x1a"):
        raise PointCloudError(
            f"{path}: {len(data) - offset} bytes follow what its header promises; it may have written other types, "
            "such as doubles declared as float, or a count in the header is wrong"
        )
    return _result(points, surfaces)


def _read_uniform_lists(data: bytes, offset: int, element: _Element, order: str) -> tuple[np.ndarray, int] | None:
    """Read faces that all have as many corners as the first one, at once; None when that is not how they are."""
    column = element.corners
    lists = [item for item in element.properties if item.count_type]
    if column is None or "strip" in element.name or len(lists) != 1 or element.count == 0:
        return None
    before = sum(np.dtype(item.type).itemsize for item in element.properties[:column])
    count_type = np.dtype(order + element.properties[column].count_type)
    if offset + before + count_type.itemsize > len(data):
        return None
    corners = int(np.frombuffer(data, count_type, 1, offset + before)[0])
    if not 0 < corners < 256:
        return None
    fields: list[tuple] = []
    for index, item in enumerate(element.properties):
        if item.count_type:
            fields += [("count", count_type), ("corners", order + item.type, (corners,))]
        else:
            fields.append((str(index), order + item.type))
    dtype = np.dtype(fields)
    if offset + dtype.itemsize * element.count > len(data):
        return None
    rows = np.frombuffer(data, dtype, element.count, offset)
    if not np.all(rows["count"] == corners):
        return None
    return rows["corners"], offset + dtype.itemsize * element.count


def _read_lists(
    data: bytes, offset: int, element: _Element, order: str, path: Path, wanted: list[int | None]
) -> tuple[list[list], int]:
    """Read an element with lists of any length, value by value."""
    columns: list[list] = [[] for _ in wanted]
    for row in range(element.count):
        for index, item in enumerate(element.properties):
            length = 1
            try:
                if item.count_type:
                    count_format = order + _STRUCT[item.count_type]
                    length = int(struct.unpack_from(count_format, data, offset)[0])
                    offset += struct.calcsize(count_format)
                size = np.dtype(item.type).itemsize * length
                if length < 0 or offset + size > len(data):
                    raise struct.error
                if index in wanted:
                    values = struct.unpack_from(f"{order}{length}{_STRUCT[item.type]}", data, offset)
                    columns[wanted.index(index)].append(list(values) if item.count_type else values[0])
            except (struct.error, ValueError, OverflowError):
                raise _truncated(path, element, row) from None
            offset += size
    return columns, offset
