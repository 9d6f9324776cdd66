"""Small geometric helpers of the procedural shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Vector = Sequence[float] | np.ndarray

TWO_PI = 2.0 * math.pi


def rotation_matrix(axis: str, angle: float) -> np.ndarray:
    """Return the right-handed rotation about a coordinate axis.

    Args:
        axis: `"x"`, `"y"` or `"z"`.
        angle: Angle in radians.

    Returns:
        Rotation matrix (3, 3), to be applied to column vectors.

    Raises:
        ValueError: If `axis` is not one of the three names.
    """
    if axis not in ("x", "y", "z"):
        raise ValueError(f"axis must be 'x', 'y' or 'z', got {axis!r}. Pass one of these names.")
    c, s = math.cos(angle), math.sin(angle)
    if axis == "x":
        rows = [[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]]
    elif axis == "y":
        rows = [[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]]
    else:
        rows = [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]
    return np.array(rows)


def bezier(controls: Sequence[Vector], num_points: int = 16) -> np.ndarray:
    """Evaluate a Bezier curve at equally spaced parameters.

    Args:
        controls: Control points, each with D coordinates (2 for a profile, 3 for a path).
        num_points: Number of points on the curve (default 16).

    Returns:
        Points (num_points, D); the first and the last control point are interpolated.
    """
    points = np.asarray(controls, dtype=float)
    degree = len(points) - 1
    t = np.linspace(0.0, 1.0, num_points)[:, None]
    k = np.arange(degree + 1)
    binomial = np.array([math.comb(degree, i) for i in k], dtype=float)
    return (binomial * t**k * (1.0 - t) ** (degree - k)) @ points


def regular_polygon(num_sides: int, radius: float = 1.0, phase: float = 0.0) -> np.ndarray:
    """Return the corners of a regular polygon.

    Args:
        num_sides: Number of corners.
        radius: Distance of the corners from the centre (default 1).
        phase: Angle of the first corner in radians (default 0).

    Returns:
        Corners (num_sides, 2) in counter-clockwise order.
    """
    angle = phase + np.arange(num_sides) * (TWO_PI / num_sides)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def frame(axis: Vector) -> tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]:
    """Return an orthonormal frame around an axis, in plain floats (faster than numpy for one vector).

    Args:
        axis: Direction (3,), not zero.

    Returns:
        Unit axis, e1 and e2, each (3,) and right-handed in this order; e1 is horizontal, x for a vertical axis.
    """
    x, y, z = (float(value) for value in axis)
    norm = math.sqrt(x * x + y * y + z * z) or 1.0
    x, y, z = x / norm, y / norm, z / norm
    if abs(y) > 0.9:
        e1 = (y, -x, 0.0)  # cross(axis, z)
    else:
        e1 = (-z, 0.0, x)  # cross(axis, y)
    length = math.sqrt(e1[0] ** 2 + e1[1] ** 2 + e1[2] ** 2)
    a, b, c = e1[0] / length, e1[1] / length, e1[2] / length
    return (x, y, z), (a, b, c), (y * c - z * b, z * a - x * c, x * b - y * a)


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cross product over the last axis (`np.cross` spends most of its time on argument checks).

    Args:
        a: Vectors (..., 3).
        b: Vectors (..., 3).

    Returns:
        Products (..., 3).
    """
    return np.stack(
        [
            a[..., 1] * b[..., 2] - a[..., 2] * b[..., 1],
            a[..., 2] * b[..., 0] - a[..., 0] * b[..., 2],
            a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0],
        ],
        axis=-1,
    )
