"""The .ply format, ascii and binary, with any extra properties; clouds and meshes."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import PointCloudError, shorten
from .columns import Pick
from .polygons import strip_to_triangles, triangulate
from .rows import parse_rows, split_lines, to_utf8

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
    extra: list[int] = field(default_factory=list)  # columns that are read as well as x, y and z

    @property
    def vertex_columns(self) -> list[int | None]:
        names = [item.name.lower() for item in self.properties]
        columns = [names.index(axis) if axis in names else None for axis in "xyz"]
        return [*columns, *self.extra]

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
    kind, elements, body, line = _read_header(data)
    vertex = next((element for element in elements if element.name == "vertex"), None)
    columns = [None] if vertex is None else vertex.vertex_columns
    if None in columns:
        found = {element.name: [item.name for item in element.properties] for element in elements}
        raise PointCloudError(f"no element 'vertex' with properties x, y and z; its header has {found}")
    if pick is not None:
        vertex.extra = pick([item.name for item in vertex.properties])
    lists = [item.name for item in map(vertex.properties.__getitem__, vertex.vertex_columns) if item.count_type]
    if lists:
        raise PointCloudError(f"the properties must be one number each, got lists: {', '.join(lists)}")
    for element in elements:
        if element.name == "face" and element.count and element.corners is None:
            found = [item.name for item in element.properties]
            raise PointCloudError(f"its faces have no list of vertex_indices; their properties are {found}")
    order = "<" if kind == "binary_little_endian" else ">"
    content = _Text(data[body:], line) if kind == "ascii" else _Binary(data, body, order)
    points, surfaces = None, []
    for element in elements:
        is_vertex = element is vertex
        corners = [] if element.corners is None else [element.corners]
        columns = content.read(element, vertex.vertex_columns if is_vertex else corners)
        if is_vertex:
            points = columns
        elif corners and element.count:
            surfaces.append((element, columns))
    content.check_end()
    faces = [np.empty((0, 3), dtype=np.int64)]
    for element, lists in surfaces:
        if "strip" in element.name:
            faces += [strip_to_triangles(strip) for strip in lists]
        else:
            faces.append(triangulate(lists, points[:, :3]))
    faces = np.concatenate(faces)
    return points, faces if len(faces) else None


def _read_header(data: bytes) -> tuple[str, list[_Element], int, int]:
    """Read the header; gives the format, the elements, and where the body starts: its offset and its line."""
    if data[:3].lower() != b"ply":
        raise PointCloudError(f"a .ply file starts with 'ply', this one with {shorten(data[:12])}")
    break_at = 3 + len(data[3:8]) - len(data[3:8].lstrip(b" \t"))
    mark = next((mark for mark in (b"\r\n", b"\r", b"\n") if data.startswith(mark, break_at)), b"\n")
    end = _END_HEADER.search(data, 0, _MAX_HEADER)
    if end is None:
        raise PointCloudError("the header has no 'end_header'; truncated?")
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
            raise PointCloudError(f"line {number} of the header cannot be read: {shorten(line)}") from None
    if kind not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise PointCloudError(f"format must be ascii, binary_little_endian or binary_big_endian, got {kind!r}")
    return kind, elements, offset, len(lines) + 1


def _truncated(element: _Element, found: int | str) -> PointCloudError:
    return PointCloudError(
        f"the header promises {element.count} of element {element.name!r}, the file holds {found}; truncated?"
    )


class _Text:
    """The body of an ascii file, read element by element."""

    def __init__(self, body: bytes, line: int):
        self.lines = [line for line in split_lines(body.decode("latin-1")) if line.strip()]
        self.start, self.first_line = 0, line

    def read(self, element: _Element, wanted: list[int]) -> np.ndarray | list[list[int]]:
        """Read some columns of numbers, of shape `(count, num_wanted)`, or the lists of a column of lists."""
        rows = self.lines[self.start : self.start + element.count]
        if len(rows) < element.count:
            raise _truncated(element, len(rows))
        line = self.first_line + self.start
        self.start += element.count
        if not wanted or not rows:
            return np.empty((0, len(wanted)))
        is_list = element.properties[wanted[0]].count_type is not None
        if not any(item.count_type for item in element.properties[: max(wanted)]):
            if not is_list:
                return parse_rows(rows, wanted, line)
            place = wanted[0]
            if all(row.split(None, place + 1)[place : place + 1] == ["3"] for row in rows):
                return parse_rows(rows, range(place + 1, place + 4), line, dtype=np.int64)
        found = [self._values(row, element, wanted, line + offset) for offset, row in enumerate(rows)]
        if not is_list:
            return parse_rows([" ".join(word for (word,) in values) for values in found], range(len(wanted)), line)
        return [values[0] for values in found]

    def _values(self, row: str, element: _Element, wanted: list[int], line: int) -> list[list]:
        """Give the values of some columns of a row with lists in it: a word each, or the numbers of a list."""
        words, place, values = row.split(), 0, {}
        for index, item in enumerate(element.properties[: max(wanted) + 1]):
            try:
                length = int(words[place]) if item.count_type else 1
                place += item.count_type is not None
                found = words[place : place + length]
                values[index] = list(map(int, found)) if item.count_type and index in wanted else found
            except (ValueError, IndexError):
                length = -1
            if length < 0 or len(values[index]) != length:
                what = "a face, its number of corners and as many vertex numbers" if item.count_type else item.name
                raise PointCloudError(f"line {line}: expected {what}, got {shorten(row.strip())}")
            place += length
        return [values[index] for index in wanted]

    def check_end(self) -> None:
        if self.start < len(self.lines):
            raise PointCloudError(
                f"its header promises {self.start} lines of data, {len(self.lines)} follow; is a count in the header "
                "wrong?"
            )


class _Binary:
    """The body of a binary file, read element by element."""

    def __init__(self, data: bytes, offset: int, order: str):
        self.data, self.offset, self.order = data, offset, order

    def read(self, element: _Element, wanted: list[int]) -> np.ndarray | list[list[int]]:
        """Read as `_Text.read`."""
        dtype = self._row_type(element)
        size = dtype.itemsize * element.count if dtype is not None else 0
        available = len(self.data) - self.offset
        lists = [f"count {index}" for index, item in enumerate(element.properties) if item.count_type]
        if not lists and size > available:
            raise _truncated(element, available // max(dtype.itemsize, 1))
        if dtype is not None and size <= available:
            rows = np.frombuffer(self.data, dtype, element.count, self.offset)
            if all((rows[name] == rows[name][:1]).all() for name in lists):
                self.offset += size
                columns = [rows[str(index)] for index in wanted]
                if not wanted or columns[0].ndim == 2:
                    return columns[0] if wanted else rows
                columns = np.stack(columns, axis=1)
                return columns.astype(columns.dtype.newbyteorder("="))
        columns = self._values(element, wanted)
        is_list = wanted and element.properties[wanted[0]].count_type
        return columns[0] if is_list else np.array(columns, dtype=np.float64).T

    def _row_type(self, element: _Element) -> np.dtype | None:
        """Give the type of the rows if their lists are as long as those of the first one; None if that is broken."""
        fields, place = [], self.offset
        for index, item in enumerate(element.properties):
            shape = ()
            if item.count_type:
                count = np.dtype(self.order + item.count_type)
                if place + count.itemsize > len(self.data) or count.kind not in "iu":
                    return None
                shape = (int(np.frombuffer(self.data, count, 1, place)[0]),)
                if not 0 <= shape[0] < 256:
                    return None
                fields.append((f"count {index}", count))
                place += count.itemsize
            fields.append((str(index), self.order + item.type, shape))
            place += np.dtype(item.type).itemsize * math.prod(shape)
        return np.dtype(fields)

    def _values(self, element: _Element, wanted: list[int]) -> list[list]:
        """Read an element with lists of any length, value by value."""
        columns: list[list] = [[] for _ in wanted]
        data, offset = self.data, self.offset
        for row in range(element.count):
            for index, item in enumerate(element.properties):
                length = 1
                try:
                    if item.count_type:
                        count_format = self.order + _STRUCT[item.count_type]
                        length = int(struct.unpack_from(count_format, data, offset)[0])
                        offset += struct.calcsize(count_format)
                    size = np.dtype(item.type).itemsize * length
                    if length < 0 or offset + size > len(data):
                        raise struct.error
                    if index in wanted:
                        values = struct.unpack_from(f"{self.order}{length}{_STRUCT[item.type]}", data, offset)
                        columns[wanted.index(index)].append(list(values) if item.count_type else values[0])
                except (struct.error, ValueError, OverflowError):
                    raise _truncated(element, row) from None
                offset += size
        self.offset = offset
        return columns

    def check_end(self) -> None:
        if self.data[self.offset :].strip(b"\0\r\n \x1a"):
            raise PointCloudError(
                f"{len(self.data) - self.offset} bytes follow what its header promises; it may have written other "
                "types, such as doubles declared as float, or a count in the header is wrong"
            )
