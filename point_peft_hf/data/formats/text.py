"""Clouds as rows of numbers: .xyz, .txt, .csv, .pts, .asc; and .off meshes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import PointCloudError, shorten
from .rows import bad_row, parse_rows, parse_text_faces

_COMMENTS = ("#", "//")
_OFF_HEADER = re.compile(r"^(?:ST)?C?N?4?n?OFF\b|^(?:ST)?C?N?4?n?OFF(?=\d)")


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def _split(line: str) -> tuple[str | None, list[str]]:
    """Find the delimiter of a line and split it."""
    delimiter = next((character for character in ";," if character in line), None)
    return delimiter, [token.strip().strip("\"'") for token in line.split(delimiter)]


def read_text_lines(path: Path) -> list[str]:
    """Read a text file as lines.

    Args:
        path: The file; UTF-8, with or without a byte order mark. Other bytes are kept as replacement characters.

    Returns:
        The lines, without line ends.

    Raises:
        PointCloudError: If the file is binary.
    """
    data = path.read_bytes()
    if b"\0" in data[:65536]:
        raise PointCloudError(f"{path}: is binary, but its name ends with {path.suffix!r}, a text format")
    return data.decode("utf-8-sig", errors="replace").splitlines()


def read_table(path: Path) -> np.ndarray:
    """Read all the columns of numbers of a text file.

    A first line with the number of points (.pts) and a line with the names of the columns are understood, as are
    comments after `#` or `//`, and commas, semicolons or white space between the numbers.

    Args:
        path: The file.

    Returns:
        Array of shape `(num_points, num_columns)`, float64, x, y, z first when the file names its columns.

    Raises:
        PointCloudError: If a line cannot be read as numbers, or the rows differ in length.
    """
    lines = read_text_lines(path)
    numbers = [index for index, line in enumerate(lines) if line.strip() and not line.lstrip().startswith(_COMMENTS)]
    if not numbers:
        raise PointCloudError(
            f"{path}: holds no row of numbers, only comments and blank lines; is the export complete?"
        )
    names, promised = None, None
    delimiter, tokens = _split(lines[numbers[0]])
    if not any(_is_number(token) for token in tokens):
        names = [token.lower() for token in tokens]
        if len(numbers) == 1:
            raise PointCloudError(f"{path}: holds a header, {shorten(lines[numbers[0]])}, and no row of numbers")
        numbers = numbers[1:]
    elif len(tokens) == 1 and tokens[0].isdigit() and len(numbers) > 1 and len(_split(lines[numbers[1]])[1]) >= 3:
        promised = int(tokens[0])
        numbers = numbers[1:]
    delimiter, tokens = _split(lines[numbers[0]])
    tokens = tokens[:-1] if tokens and tokens[-1] == "" else tokens  # a delimiter at the end of the line
    first = numbers[0] + 1
    if len(tokens) < 3:
        raise PointCloudError(
            f"{path}: line {first}: a point needs 3 numbers (x y z), got {len(tokens)} columns: "
            f"{shorten(lines[numbers[0]].strip())}"
        )
    columns = _column_order(names, tokens)
    rows = [lines[index] for index in numbers]
    if any("#" in row or "//" in row for row in rows):
        rows = [re.split(r"#|//", row)[0] for row in rows]
    try:
        table = parse_rows(rows, columns, path, first, delimiter)
    except PointCloudError:
        for index, row in zip(numbers, rows, strict=True):  # blank lines and comments shift the line numbers
            reason = bad_row(row, columns, delimiter)
            if reason:
                raise PointCloudError(f"{path}: line {index + 1}: {reason}") from None
        raise
    if promised is not None and promised != len(table):
        raise PointCloudError(f"{path}: its first line promises {promised} points, {len(table)} follow; truncated?")
    return table


def _column_order(names: list[str] | None, tokens: list[str]) -> list[int]:
    """Choose the columns: x, y, z by name where there are names, then the other columns of numbers, in order."""
    numeric = [column for column, token in enumerate(tokens) if _is_number(token)]
    first = [0, 1, 2]
    if names and {"x", "y", "z"} <= set(names):
        first = [names.index(axis) for axis in "xyz"]
    return first + [column for column in numeric if column not in first]


def read_text(path: Path) -> tuple[np.ndarray, None]:
    """Read the points of a text file: the first three columns, or those named x, y and z."""
    return read_table(path)[:, :3], None


def read_off(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an .off mesh, ModelNet40's with the counts glued to the first word (`OFF490 518 0`) included.

    Args:
        path: The file, ascii.

    Returns:
        Vertices of shape `(num_vertices, 3)`, and triangles of shape `(num_triangles, 3)` or None.

    Raises:
        PointCloudError: If the header is not one of an .off file, or there are fewer lines than it promises.
    """
    raw = read_text_lines(path)
    numbered = [(index + 1, line.split("#")[0].strip()) for index, line in enumerate(raw)]
    numbered = [(number, line) for number, line in numbered if line]
    if not numbered:
        raise PointCloudError(f"{path}: holds nothing but comments and blank lines")
    first, body = numbered[0][1], 1
    match = _OFF_HEADER.match(first)
    if match:
        rest = first[match.end() :].split()
    elif len(first.split()) == 3:
        rest = first.split()  # the keyword is optional
    else:
        raise PointCloudError(f"{path}: an .off file starts with 'OFF', this one with {shorten(first)}")
    if rest and rest[0].upper() == "BINARY":
        raise PointCloudError(f"{path}: binary .off is not read; write it as ascii .off or as .ply")
    if not rest:
        rest, body = (numbered[1][1].split() if len(numbered) > 1 else []), 2
    if len(rest) < 2 or not (rest[0].isdigit() and rest[1].isdigit()):
        raise PointCloudError(
            f"{path}: expected the numbers of vertices, faces and edges after 'OFF', got {shorten(' '.join(rest))}"
        )
    num_vertices, num_faces = int(rest[0]), int(rest[1])
    lines = [line for _, line in numbered[body:]]
    if num_vertices == 0:
        raise PointCloudError(f"{path}: its header promises 0 vertices; there is nothing to sample")
    if len(lines) < num_vertices + num_faces:
        raise PointCloudError(
            f"{path}: its header promises {num_vertices} vertices and {num_faces} faces, "
            f"{len(lines)} lines follow; truncated?"
        )
    start = numbered[body][0]
    vertices = parse_rows(lines[:num_vertices], (0, 1, 2), path, start)
    faces = parse_text_faces(lines[num_vertices : num_vertices + num_faces], path, start + num_vertices)
    return vertices, faces if len(faces) else None
