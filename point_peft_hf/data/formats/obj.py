"""The .obj format of Wavefront: vertices and faces; all else is left out."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import PointCloudError, shorten
from .polygons import triangulate
from .rows import parse_number, split_lines, to_utf8

_BESIDE_VERTEX = re.compile(r"/\S*")
_VERTEX, _FACE = ("v ", "V "), ("f ", "F ", "fo")


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an .obj file as vertices `(num_vertices, 3)` and triangles `(num_triangles, 3)`, None without faces."""
    text = to_utf8(path.read_bytes()).decode("utf-8", errors="replace")
    if "\0" in text:
        raise PointCloudError("not a readable .obj mesh: it is binary, not text")
    lines = _tidy(split_lines(text))
    rows = [line for line in lines if line[:2] in _VERTEX]
    if not rows:
        raise PointCloudError("not a readable .obj mesh: it holds no mesh, as no line starts with v")
    try:
        vertices = np.loadtxt(rows, usecols=(1, 2, 3), ndmin=2, comments="#")
    except ValueError:
        vertices = _parse_vertices(lines)
    faces = [line for line in lines if line[:2] in _FACE]
    if faces:
        triangles = triangulate(_parse_faces(lines, faces, len(vertices)), vertices)
        return vertices, triangles if len(triangles) else None
    if any(line.startswith(("surf ", "curv ", "curv2 ")) for line in lines):
        raise PointCloudError("holds free-form surfaces, which are not read; export it as triangles")
    return vertices, None


def _tidy(lines: list[str]) -> list[str]:
    r"""Take away blanks before lines and tabs after their first word, and join lines that end with a backslash."""
    lines = [line.lstrip() if line[:1].isspace() else line for line in lines]
    lines = [line.replace("\t", " ", 1) if "\t" in line[:3] else line for line in lines]
    if not any(line.endswith("\\") for line in lines):
        return lines
    joined: list[str] = []
    for line in lines:
        if joined and joined[-1].endswith("\\"):
            joined[-1] = joined[-1][:-1] + " " + line
        else:
            joined.append(line)
    return joined


def _parse_vertices(lines: list[str]) -> np.ndarray:
    """Parse vertices one by one, to name the line that is wrong or to read other numbers."""
    rows = []
    for number, line in enumerate(lines, start=1):
        if line[:2] in _VERTEX:
            try:
                rows.append([parse_number(word) for word in line.split("#")[0].split()[1:4]])
            except ValueError:
                rows.append([])
            if len(rows[-1]) < 3:
                raise PointCloudError(f"line {number}: expected 'v x y z', got {shorten(line.strip())}")
    return np.array(rows)


def _parse_faces(lines: list[str], faces: list[str], num_vertices: int) -> np.ndarray | list[list[int]]:
    """Give the corners of faces, counted from 0: as an array where all have the same number."""
    text = "\n".join([line[2:] for line in faces])
    if "-" not in text:
        if "/" in text:
            text = _BESIDE_VERTEX.sub("", text)
        try:
            table = np.loadtxt(text.split("\n"), dtype=np.int64, ndmin=2, comments="#")
        except ValueError:
            table = None
        if table is not None and len(table) == len(faces):
            if table.min() < 1 or table.max() > num_vertices:
                _refuse(int(table.min() if table.min() < 1 else table.max()), num_vertices)
            return table - 1
    polygons, before = [], 0
    for number, line in enumerate(lines, start=1):
        if line[:2] in _VERTEX:
            before += 1
        elif line[:2] in _FACE:
            words = line.split("#")[0].split()[1:]
            try:
                corners = [int(word.partition("/")[0]) for word in words]
            except ValueError:
                raise PointCloudError(
                    f"line {number}: expected 'f' and numbers of vertices, got {shorten(line.strip())}"
                ) from None
            # Numbers below 0 count backwards from the vertices so far.
            corners = [corner - 1 if corner > 0 else before + corner if corner < 0 else -1 for corner in corners]
            wrong = next((index for index, corner in enumerate(corners) if not 0 <= corner < num_vertices), None)
            if wrong is not None:
                _refuse(words[wrong], num_vertices)
            polygons.append(corners)
    return polygons


def _refuse(vertex: object, num_vertices: int) -> None:
    raise PointCloudError(
        f"not a readable .obj mesh: a face names vertex {vertex}, and the file has {num_vertices} vertices"
    )
