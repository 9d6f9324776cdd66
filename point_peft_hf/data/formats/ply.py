"""The .ply format, ascii and binary, with any extra properties; clouds and meshes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import PointCloudError, shorten
from .rows import parse_rows, parse_text_faces, triangulate

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"},
    **{"int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"},
}
_STRUCT = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "f4": "f", "f8": "d"}
_FACE_NAMES = ("vertex_indices", "vertex_index")
_MAX_HEADER = 1 << 20


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
    more: list[int] = field(default_factory=list)  # columns that are read beside x, y and z

    @property
    def vertex_columns(self) -> list[int | None]:
        return [*(self.column((axis,)) for axis in "xyz"), *self.more]

    @property
    def has_lists(self) -> bool:
        return any(item.count_type for item in self.properties)

    def column(self, names: tuple[str, ...]) -> int | None:
        return next((index for index, item in enumerate(self.properties) if item.name in names), None)


def read_ply(path: Path, label_names: tuple[str, ...] | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a .ply file.

    Args:
        path: The file: ascii, binary little endian or binary big endian.
        label_names: Also read the vertex property that has one of these names, upper and lower case aside.

    Returns:
        Points or vertices of shape `(num_points, 3)`, with labels `(num_points, 4)`; and triangles of shape
        `(num_triangles, 3)` or None.

    Raises:
        PointCloudError: If the header is broken, x, y, z or the label are missing, or the data are shorter than it
            promises.
    """
    data = path.read_bytes()
    kind, elements, body = _read_header(data, path)
    vertex = next((element for element in elements if element.name == "vertex"), None)
    if vertex is None or any(vertex.column((axis,)) is None for axis in "xyz"):
        found = {element.name: [item.name for item in element.properties] for element in elements}
        raise PointCloudError(f"{path}: no element 'vertex' with properties x, y and z; its header has {found}")
    if label_names is not None:
        found = [item.name for item in vertex.properties]
        wanted = tuple(name for name in found if name.lower() in label_names)
        if not wanted:
            raise PointCloudError(
                f"{path}: no vertex property of a label's name ({', '.join(label_names)}); its header has {found}"
            )
        vertex.more.append(vertex.column(wanted))
    if kind == "ascii":
        return _read_ascii(data[body:], elements, path, data[:body].count(b"\n") + 1)
    return _read_binary(data, body, elements, "<" if kind == "binary_little_endian" else ">", path)


def _read_header(data: bytes, path: Path) -> tuple[str, list[_Element], int]:
    if data[:3] != b"ply":
        raise PointCloudError(f"{path}: a .ply file starts with 'ply', this one with {shorten(data[:12])}")
    end = data.find(b"end_header", 0, _MAX_HEADER)
    line_end = data.find(b"\n", end)
    if end < 0:
        raise PointCloudError(f"{path}: the header has no 'end_header'; truncated?")
    body = line_end + 1 if line_end >= 0 else len(data)
    kind, elements = "", []
    for number, line in enumerate(data[:end].decode("latin-1").splitlines()[1:], start=2):
        words = line.split()
        try:
            if not words or words[0] in ("comment", "obj_info"):
                continue
            if words[0] == "format":
                kind = words[1]
            elif words[0] == "element":
                elements.append(_Element(words[1], int(words[2])))
            elif words[0] == "property" and words[1] == "list":
                elements[-1].properties.append(_Property(words[4], _TYPES[words[3]], _TYPES[words[2]]))
            elif words[0] == "property":
                elements[-1].properties.append(_Property(words[2], _TYPES[words[1]]))
            else:
                raise ValueError("unknown keyword")
            if words[0] == "element" and elements[-1].count < 0:
                raise ValueError("negative count")
        except (ValueError, IndexError, KeyError):
            raise PointCloudError(f"{path}: line {number} of the header cannot be read: {shorten(line)}") from None
    if kind not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise PointCloudError(f"{path}: format must be ascii, binary_little_endian or binary_big_endian, got {kind!r}")
    return kind, elements, body


def _truncated(path: Path, element: _Element, found: int | str) -> PointCloudError:
    return PointCloudError(
        f"{path}: the header promises {element.count} of element {element.name!r}, the file holds {found}; truncated?"
    )


def _read_ascii(
    body: bytes, elements: list[_Element], path: Path, first_line: int
) -> tuple[np.ndarray, np.ndarray | None]:
    lines = [line for line in body.decode("latin-1").splitlines() if line.strip()]
    points, faces, start = None, None, 0
    for element in elements:
        rows = lines[start : start + element.count]
        if len(rows) < element.count:
            raise _truncated(path, element, len(rows))
        line = first_line + start
        start += element.count
        if element.name == "vertex":
            columns = element.vertex_columns
            if any(item.count_type for item in element.properties[: max(columns)]):
                raise PointCloudError(f"{path}: list properties before x, y and z are not read in ascii .ply")
            points = parse_rows(rows, columns, path, line)
        elif element.name == "face" and element.column(_FACE_NAMES) is not None:
            before = element.properties[: element.column(_FACE_NAMES)]
            if any(item.count_type for item in before):
                raise PointCloudError(f"{path}: list properties before the vertex indices are not read in ascii .ply")
            if before:
                rows = [" ".join(row.split()[len(before) :]) for row in rows]
            faces = parse_text_faces(rows, path, line)
    return points, faces if faces is not None and len(faces) else None


def _read_binary(
    data: bytes, offset: int, elements: list[_Element], order: str, path: Path
) -> tuple[np.ndarray, np.ndarray | None]:
    points, faces = None, None
    for element in elements:
        if element.name == "face" and element.count == 0:
            continue
        if not element.has_lists:
            dtype = np.dtype([(f"{i}", order + item.type) for i, item in enumerate(element.properties)])
            size = dtype.itemsize * element.count
            if offset + size > len(data):
                raise _truncated(path, element, (len(data) - offset) // max(dtype.itemsize, 1))
            if element.name == "vertex":
                rows = np.frombuffer(data, dtype, element.count, offset)
                points = np.stack([rows[str(column)] for column in element.vertex_columns], axis=1)
                points = points.astype(points.dtype.newbyteorder("="))
            offset += size
            continue
        uniform = _read_uniform_lists(data, offset, element, order)
        if uniform is not None:
            faces_rows, offset = uniform
            if element.name == "face" and element.column(_FACE_NAMES) is not None:
                faces = triangulate(faces_rows)
            continue
        wanted = element.vertex_columns if element.name == "vertex" else None
        if element.name == "face":
            wanted = [element.column(_FACE_NAMES)]
        columns, offset = _read_lists(data, offset, element, order, path, wanted or [])
        if element.name == "vertex":
            points = np.array(columns, dtype=np.float64).T
        elif element.name == "face" and wanted[0] is not None:
            faces = triangulate(columns[0])
    return points, faces if faces is not None and len(faces) else None


def _read_uniform_lists(data: bytes, offset: int, element: _Element, order: str) -> tuple[np.ndarray, int] | None:
    """Read faces that all have as many corners as the first one, at once; None when that is not how they are."""
    column = element.column(_FACE_NAMES)
    lists = [item for item in element.properties if item.count_type]
    if element.name != "face" or column is None or len(lists) != 1:
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
