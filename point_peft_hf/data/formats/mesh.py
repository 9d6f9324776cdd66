"""Uniform samples of the surface of a mesh."""

from __future__ import annotations

import numpy as np

from ..errors import PointCloudError
from .polygons import check_indices


def sample_surface(
    vertices: np.ndarray, faces: np.ndarray, num_points: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw points uniformly on the surface of a mesh: `(num_points, 3)`, float64, in the unit of the vertices.

    Args:
        vertices: Corner coordinates of shape `(num_vertices, 3)`.
        faces: Triangles of shape `(num_triangles, 3)`, as vertex indices.
        num_points: How many points.
        generator: Source of randomness.
    """
    check_indices(faces, len(vertices))
    vertices = vertices.astype(np.float64, copy=False)
    corner = vertices[faces[:, 0]]
    first, second = vertices[faces[:, 1]] - corner, vertices[faces[:, 2]] - corner
    cumulative = np.cumsum(np.linalg.norm(np.cross(first, second), axis=1))
    if not cumulative[-1] > 0 or not np.isfinite(cumulative[-1]):
        raise PointCloudError(f"its {len(faces)} faces have no area, so that no point can be drawn on them")
    chosen = np.searchsorted(cumulative, generator.random(num_points) * cumulative[-1], side="right")
    chosen = np.minimum(chosen, len(faces) - 1)
    weights = generator.random((num_points, 2))
    # Fold the unit square onto the triangle, which keeps the density uniform.
    outside = weights.sum(axis=1) > 1
    weights[outside] = 1 - weights[outside]
    return corner[chosen] + weights[:, :1] * first[chosen] + weights[:, 1:] * second[chosen]
