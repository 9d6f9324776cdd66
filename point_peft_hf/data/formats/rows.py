"""Rows of numbers written as text, and polygons cut into triangles: shared by the readers of text formats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import PointCloudError, shorten


def parse_rows(
    lines: Sequence[str],
    columns: Sequence[int],
    path: Path,
    first_line: int,
    delimiter: str | None = None,
    dtype: type = np.float64,
) -> np.ndarray:
    """Parse lines of numbers.

    Args:
        lines: The lines, without blank ones.
        columns: Which columns to keep.
        path: File they come from, for messages.
        first_line: Line number of the first one in the file, counted from 1, for messages.
        delimiter: Character between the numbers; white space by default.
        dtype: Type of the numbers.

    Returns:
        Array of shape `(len(lines), len(columns))`.

    Raises:
        PointCloudError: If a line has too few columns or something that is not a number.
    """
    if len(lines) == 0:
        return np.empty((0, len(columns)), dtype=dtype)
    try:
        return np.loadtxt(lines, dtype=dtype, usecols=tuple(columns), ndmin=2, comments=None, delimiter=delimiter)
    except (ValueError, IndexError, OverflowError) as error:
        for offset, line in enumerate(lines):
            reason = bad_row(line, columns, delimiter)
            if reason:
                raise PointCloudError(f"{path}: line {first_line + offset}: {reason}") from None
        raise PointCloudError(f"{path}: rows that cannot be read as numbers: {error}") from None


def bad_row(line: str, columns: Sequence[int], delimiter: str | None) -> str | None:
    """Say what is wrong with a row of numbers, or None when it is fine."""
    tokens = line.split(delimiter)
    if len(tokens) <= max(columns):
        return f"needs at least {max(columns) + 1} columns, has {len(tokens)}: {shorten(line.strip())}"
    for column in columns:
        try:
            float(tokens[column])
        except ValueError:
            comma = "; write decimals with a point" if re.fullmatch(r"\s*-?\d+,\d+\s*", tokens[column]) else ""
            return f"expected a number in column {column + 1}, got {shorten(tokens[column])}{comma}"
    return None


def parse_text_faces(lines: Sequence[str], path: Path, first_line: int) -> np.ndarray:
    """Parse faces written as `n i_1 ... i_n [anything]` and cut them into triangles.

    Args:
        lines: One face a line.
        path: File they come from, for messages.
        first_line: Line number of the first one in the file, counted from 1, for messages.

    Returns:
        Vertex indices of the triangles, int64, of shape `(num_triangles, 3)`.
    """
    if all(line.lstrip().startswith(("3 ", "3\t")) for line in lines):
        return parse_rows(lines, (1, 2, 3), path, first_line, dtype=np.int64)
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
                f"{path}: line {first_line + offset}: expected a face, its number of corners and as many vertex "
                f"numbers, got {shorten(line.strip())}"
            )
        polygons.append(polygon)
    return triangulate(polygons)


def triangulate(polygons: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    """Cut polygons into fans of triangles around their first corner.

    Args:
        polygons: Vertex indices of each polygon; those with fewer than 3 corners are left out. Or an array of shape
            `(num_polygons, num_corners)`.

    Returns:
        Vertex indices, int64, of shape `(num_triangles, 3)`.
    """
    if isinstance(polygons, np.ndarray):
        polygons = polygons.astype(np.int64)
        fans = [
            np.stack([polygons[:, 0], polygons[:, corner], polygons[:, corner + 1]], axis=1)
            for corner in range(1, polygons.shape[1] - 1)
        ]
        return np.concatenate(fans) if fans else np.empty((0, 3), dtype=np.int64)
    triangles = [
        (polygon[0], polygon[corner], polygon[corner + 1])
        for polygon in polygons
        for corner in range(1, len(polygon) - 1)
    ]
    return np.array(triangles, dtype=np.int64).reshape(-1, 3)
