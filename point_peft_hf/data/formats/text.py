"""Clouds as rows of numbers: .xyz, .txt, .csv, .pts, .asc; and .off meshes."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import PointCloudError, shorten
from .rows import bad_row, parse_rows, parse_text_faces

_COMMENTS = ("#", "//")
# What the columns of the coordinates are called in lower case, in order of preference; with the names of ParaView.
_AXES = (
    ("x", "y", "z"),
    *(tuple(f"points{mark}{axis}" for axis in range(3)) for mark in (":", "_")),
    *((*plane, height) for plane in (("easting", "northing"), ("x", "y")) for height in ("height", "elevation", "z")),
)
_UNIT = re.compile(r"(?<=[^\s,;\"'])\s*(\[[^\]]*\]|\([^)]*\))")
_HEAD = 65536
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


def _split_names(line: str) -> list[str]:
    """Split a line of names of columns; in lower case, without units in brackets and the mark of a comment."""
    return [name.lower() for name in _split(_UNIT.sub("", line.strip().lstrip("#/")))[1]]


def read_text_lines(path: Path, limit: int = -1) -> list[str]:
    """Read a text file as lines.

    Args:
        path: The file; UTF-8, with or without a byte order mark. Other bytes are kept as replacement characters.
        limit: Number of bytes to read; all by default. A last line that is cut by it is left out.

    Returns:
        The lines, without line ends.

    Raises:
        PointCloudError: If the file is binary.
    """
    with open(path, "rb") as file:
        data = file.read(limit)
    if b"\0" in data[:_HEAD]:
        raise PointCloudError(f"{path}: is binary, but its name ends with {path.suffix!r}, a text format")
    if len(data) == limit:
        data = data[: data.rfind(b"\n") + 1]
    return data.decode("utf-8-sig", errors="replace").splitlines()


@dataclass
class _Plan:
    """How the rows of a text file are to be read."""

    first: int  # number of lines before the first row
    columns: list[int]
    delimiter: str | None
    promised: int | None  # number of points, when the file says it
    names: list[str] | None  # of the columns, when the file names them, in the order of `columns`


def read_table(path: Path) -> np.ndarray:
    """Read all the columns of numbers of a text file.

    A first line with the number of points (.pts) and a line with the names of the columns are understood, as are
    comments after `#` or `//`, and commas, semicolons or white space between the numbers.

    Args:
        path: The file.

    Returns:
        Array of shape `(num_points, num_columns)`, float64, x, y, z first when the file names its columns.

    Raises:
        PointCloudError: If a line cannot be read as numbers, there are fewer rows than the file says, or a header of
            more than three names does not name the coordinates.
    """
    head = read_text_lines(path, _HEAD)
    table = None
    try:
        plan = _make_plan(head, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = np.loadtxt(
                path,
                delimiter=plan.delimiter,
                skiprows=plan.first,
                usecols=tuple(plan.columns),
                ndmin=2,
                encoding="utf-8-sig",
            )
    except ValueError:
        # Other comments, other encodings, or an error that needs its line named: at leisure.
        lines = read_text_lines(path)
        plan = _make_plan(lines, path)
        table = _parse_lines(lines, plan, path)
    if plan.promised is not None and plan.promised != len(table):
        raise PointCloudError(f"{path}: its first line promises {plan.promised} points, {len(table)} follow")
    return table


def read_column_names(path: Path) -> list[str] | None:
    """Read the names of the columns that `read_table` gives, in lower case; None when the file does not name them."""
    return _make_plan(read_text_lines(path, _HEAD), path).names


def holds_rows(path: Path) -> bool:
    """Tell by the first row of a text file whether it can be a cloud."""
    try:
        lines = read_text_lines(path, _HEAD)
        plan = _make_plan(lines, path)
    except (PointCloudError, OSError):
        return False
    return bad_row(lines[plan.first], plan.columns, plan.delimiter) is None


def _make_plan(lines: list[str], path: Path) -> _Plan:
    """Look at the first lines of a text file."""
    numbers = (i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith(_COMMENTS))
    first = next(numbers, None)
    if first is None:
        raise PointCloudError(f"{path}: holds no row of numbers, only comments and blank lines; is it complete?")
    names, promised = None, None
    delimiter, tokens = _split(lines[first])
    second = next(numbers, None)
    if not any(_is_number(token) for token in tokens):
        if second is None:
            raise PointCloudError(f"{path}: holds a header, {shorten(lines[first])}, and no row of numbers")
        names, first = _split_names(lines[first]), second
    elif len(tokens) == 1 and tokens[0].isdigit() and second is not None and len(_split(lines[second])[1]) >= 3:
        promised, first = int(tokens[0]), second
    delimiter, tokens = _split(lines[first])
    if len(tokens) < 3:
        raise PointCloudError(
            f"{path}: line {first + 1}: a point needs 3 numbers (x y z), got {len(tokens)} columns: "
            f"{shorten(lines[first].strip())}"
        )
    columns = _column_order(names or _commented_names(lines[:first], tokens), tokens, path)
    if names is not None:
        names = [names[column] if column < len(names) else "" for column in columns]
    return _Plan(first, columns, delimiter, promised, names)


def _parse_lines(lines: list[str], plan: _Plan, path: Path) -> np.ndarray:
    """Parse the rows of a text file one by one as far as needed to say which one is wrong."""
    numbers = [
        index
        for index in range(plan.first, len(lines))
        if lines[index].strip() and not lines[index].lstrip().startswith(_COMMENTS)
    ]
    rows = [re.split(r"#|//", lines[index])[0] for index in numbers]
    try:
        return parse_rows(rows, plan.columns, path, plan.first + 1, plan.delimiter)
    except PointCloudError:
        for index, row in zip(numbers, rows, strict=True):  # blank lines and comments shift the line numbers
            reason = bad_row(row, plan.columns, plan.delimiter)
            if reason:
                raise PointCloudError(f"{path}: line {index + 1}: {reason}") from None
        raise


def _commented_names(lines: list[str], tokens: list[str]) -> list[str] | None:
    """Find the names of the columns in the last comment before the first row, if that names the coordinates."""
    comment = next((line for line in reversed(lines) if line.lstrip().startswith(_COMMENTS)), "")
    names = _split_names(comment)
    return names if len(names) == len(tokens) and _find_axes(names) else None


def _find_axes(names: list[str]) -> list[int] | None:
    """Find the columns of the coordinates by their names."""
    axes = next((axes for axes in _AXES if set(axes) <= set(names)), None)
    return None if axes is None else [names.index(axis) for axis in axes]


def _column_order(names: list[str] | None, tokens: list[str], path: Path) -> list[int]:
    """Choose the columns: x, y, z by name where there are names, then the other columns of numbers, in order."""
    first = [0, 1, 2] if names is None else _find_axes(names)
    if first is None:
        if sum(map(bool, tokens)) > 3:  # a last one may be empty
            raise PointCloudError(
                f"{path}: cannot tell which columns are the coordinates; name them x, y and z in its header, which "
                f"has {shorten(names, 200)}"
            )
        first = [0, 1, 2]
    numeric = [column for column, token in enumerate(tokens) if _is_number(token)]
    return first + [column for column in numeric if column not in first]


def read_text(path: Path) -> tuple[np.ndarray, None]:
    """Read the points of a text file: the columns named x, y and z or the like, without names the first three."""
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
