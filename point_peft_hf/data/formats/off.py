"""The .off format of meshes, ascii."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import PointCloudError, shorten
from .polygons import triangulate
from .rows import parse_rows, read_text_lines

_HEADER = re.compile(r"^(?:ST)?C?N?4?n?OFF\b|^(?:ST)?C?N?4?n?OFF(?=\d)", re.IGNORECASE)


def read_off(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an .off mesh as vertices `(num_vertices, 3)` and triangles `(num_triangles, 3)`, None without faces.

    ModelNet40's files with the counts glued to the first word (`OFF490 518 0`) are read as well.
    """
    raw = read_text_lines(path)
    numbered = [(index + 1, line.split("#")[0].strip()) for index, line in enumerate(raw)]
    numbered = [(number, line) for number, line in numbered if line]
    if not numbered:
        raise PointCloudError("holds nothing but comments and blank lines")
    first, body = numbered[0][1], 1
    match = _HEADER.match(first)
    if match:
        rest = first[match.end() :].split()
    elif len(first.split()) == 3:
        rest = first.split()  # the keyword is optional
    else:
        raise PointCloudError(f"an .off file starts with 'OFF', this one with {shorten(first)}")
    if match and re.search("4|nOFF", match[0]):
        raise PointCloudError(f"{match[0]} has vertices of other than 3 coordinates; write it as plain OFF")
    if rest and rest[0].upper() == "BINARY":
        raise PointCloudError("binary .off is not read; write it as ascii .off or as .ply")
    if not rest:
        rest, body = (numbered[1][1].split() if len(numbered) > 1 else []), 2
    if len(rest) < 2 or not (rest[0].isdecimal() and rest[1].isdecimal() and max(map(len, rest[:2])) < 20):
        raise PointCloudError(
            f"expected the numbers of vertices, faces and edges after 'OFF', got {shorten(' '.join(rest))}"
        )
    num_vertices, num_faces = int(rest[0]), int(rest[1])
    lines = [line for _, line in numbered[body:]]
    if num_vertices == 0:
        raise PointCloudError("its header promises 0 vertices; there is nothing to sample")
    if len(lines) != num_vertices + num_faces:
        raise PointCloudError(
            f"its header promises {num_vertices} vertices and {num_faces} faces, "
            f"{len(lines)} lines follow; {'truncated' if len(lines) < num_vertices + num_faces else 'a wrong count'}?"
        )
    start = numbered[body][0]
    vertices = parse_rows(lines[:num_vertices], (0, 1, 2), start)
    faces = _parse_faces(lines[num_vertices:], start + num_vertices, vertices)
    return vertices, faces if len(faces) else None


def _parse_faces(lines: list[str], first_line: int, vertices: np.ndarray) -> np.ndarray:
    """Parse faces written as `n i_1 ... i_n [anything]` and cut them into triangles."""
    if all(line.startswith(("3 ", "3\t")) for line in lines):
        return parse_rows(lines, (1, 2, 3), first_line, dtype=np.int64)
    polygons: list[list[int]] = []
    for offset, line in enumerate(lines):
        tokens = line.split()
        try:
            corners = int(tokens[0])
            polygon = [int(token) for token in tokens[1 : 1 + corners]]
        except (ValueError, IndexError):
            polygon, corners = [], 1
        if corners < 0 or len(polygon) != corners:
            raise PointCloudError(
                f"line {first_line + offset}: expected a face, its number of corners and as many vertex "
                f"numbers, got {shorten(line)}"
            )
        polygons.append(polygon)
    return triangulate(polygons, vertices)
