"""The .stl format of meshes, binary and ascii."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import PointCloudError
from .rows import parse_rows, split_lines, to_utf8

_HEADER = 84
_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("color", "<u2")])


def read_stl(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read an .stl file as corners `(3 * num_triangles, 3)`, three a triangle, and triangles `(num_triangles, 3)`."""
    data = path.read_bytes()
    text = to_utf8(data)
    # Binary files may start with "solid" as well; their size then gives them away.
    count = int.from_bytes(data[80:_HEADER], "little") if len(data) >= _HEADER else 0
    fits = count > 0 and len(data) == _HEADER + _TRIANGLE.itemsize * count
    if text.lstrip()[:5].lower() == b"solid" and not fits and b"\0" not in text[:1024]:
        corners = _read_text(text.decode("utf-8", errors="replace"))
    else:
        corners = _read_binary(data, count)
    return corners, np.arange(len(corners)).reshape(-1, 3)


def _read_binary(data: bytes, count: int) -> np.ndarray:
    size = _HEADER + _TRIANGLE.itemsize * count
    if len(data) < size or count == 0 or data[size:].strip(b"\0\r\n "):
        raise PointCloudError(
            f"not a readable .stl mesh: its header promises {count} triangles, {size} bytes; the file has "
            f"{len(data)} bytes; {'truncated' if len(data) < size else 'a wrong count'}?"
        )
    return np.frombuffer(data, _TRIANGLE, count, _HEADER)["corners"].reshape(-1, 3).astype(np.float64)


def _read_text(text: str) -> np.ndarray:
    lines = [line.strip() for line in split_lines(text.lower())]
    rows = [line for line in lines if line[:6] == "vertex"]
    facets = sum(line[:5] == "facet" for line in lines)
    last = "".join(next(line for line in reversed(lines) if line).split()[:2])
    if not last.startswith("endsolid") or len(rows) != 3 * facets or facets == 0:
        raise PointCloudError(
            f"not a readable .stl mesh: it holds {facets} facets and {len(rows)} vertices, and its last line "
            f"{'ends' if last.startswith('endsolid') else 'does not end'} the solid; truncated?"
        )
    try:
        return parse_rows(rows, (1, 2, 3), 1)
    except PointCloudError:
        for number, line in enumerate(lines, start=1):  # names the line
            if line[:6] == "vertex":
                parse_rows([line], (1, 2, 3), number)
        raise
