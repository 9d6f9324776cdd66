"""Polygons cut into triangles, and uniform samples of the surface of a mesh."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import PointCloudError

# Cutting ears takes time with the square of the number of corners.
_MAX_CONCAVE_CORNERS = 2000


def triangulate(polygons: Sequence[Sequence[int]] | np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Cut polygons into triangles that cover them: convex ones into fans, others by cutting off ears.

    Polygons are vertex indices, in lists or an array of shape `(num_polygons, num_corners)`; those with fewer than 3
    corners are left out. Returns vertex indices, int64, of shape `(num_triangles, 3)`.
    """
    if isinstance(polygons, np.ndarray):
        groups = [polygons.astype(np.int64)]
    else:
        by_size: dict[int, list[Sequence[int]]] = {}
        for polygon in polygons:
            by_size.setdefault(len(polygon), []).append(polygon)
        groups = [np.array(by_size[size], dtype=np.int64) for size in sorted(by_size)]
    triangles = [_cut(group, vertices) for group in groups if group.shape[1] >= 3 and len(group)]
    return np.concatenate(triangles) if triangles else np.empty((0, 3), dtype=np.int64)


def strip_to_triangles(strip: Sequence[int]) -> np.ndarray:
    """Cut triangle strips, vertex indices in which -1 starts a new strip, into triangles `(num_triangles, 3)`."""
    indices = np.asarray(strip, dtype=np.int64)
    if len(indices) < 3:
        return np.empty((0, 3), dtype=np.int64)
    triangles = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=1)
    return triangles[(triangles >= 0).all(axis=1)]


def check_indices(faces: np.ndarray, num_vertices: int) -> None:
    """Refuse faces, vertex indices of any shape, that name vertices which do not exist."""
    if faces.size and (faces.min() < 0 or faces.max() >= num_vertices):
        bad = int(faces.min()) if faces.min() < 0 else int(faces.max())
        raise PointCloudError(f"a face names vertex {bad}, and the file has {num_vertices} vertices")


def _cut(polygons: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Cut polygons of one number of corners, of shape `(num_polygons, num_corners)`."""
    check_indices(polygons, len(vertices))
    corners = polygons.shape[1]
    if corners == 3:
        return polygons
    if corners == 4:
        # A diagonal is outside of a concave quadrilateral if the triangles at its sides turn in different directions.
        first, second, third = (vertices[polygons[:, corner]] - vertices[polygons[:, 0]] for corner in (1, 2, 3))
        outside = np.einsum("ij,ij->i", np.cross(first, second), np.cross(second, third)) < 0
        polygons = np.where(outside[:, None], np.roll(polygons, -1, axis=1), polygons)
        concave = np.zeros(len(polygons), dtype=bool)
    else:
        turns = _turns(polygons, vertices)
        concave = (turns < -1e-9 * abs(turns).max(axis=1, keepdims=True)).any(axis=1)
    convex = polygons[~concave]
    # (num_polygons, num_corners - 2, 3): the triangles of a polygon stay together
    fans = np.stack([np.broadcast_to(convex[:, :1], convex[:, 2:].shape), convex[:, 1:-1], convex[:, 2:]], axis=2)
    return np.concatenate([fans.reshape(-1, 3), *(_cut_ears(polygon, vertices) for polygon in polygons[concave])])


def _turns(polygons: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Give how far outlines turn at each corner, `(num_polygons, num_corners)`: below 0 where it is reflex."""
    outline = vertices[polygons] - vertices[polygons[:, :1]]  # (num_polygons, num_corners, 3)
    after = np.roll(outline, -1, axis=1)
    normal = np.cross(outline, after).sum(axis=1)  # Newell's, twice the area long
    edges = after - outline
    return np.einsum("pck,pk->pc", np.cross(np.roll(edges, 1, axis=1), edges), normal)


def _cut_ears(polygon: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Cut a concave polygon of shape `(num_corners,)` into triangles, one ear (a corner without others) at a time."""
    if len(polygon) > _MAX_CONCAVE_CORNERS:
        raise PointCloudError(
            f"a concave polygon has {len(polygon)} corners, and up to {_MAX_CONCAVE_CORNERS} are cut into triangles; "
            "export the mesh as triangles"
        )
    flat = _flatten(vertices[polygon].astype(np.float64))
    left, triangles = list(range(len(polygon))), []
    place, misses = 0, 0
    while len(left) > 3:
        place %= len(left)
        ear = [left[place - 1], left[place], left[(place + 1) % len(left)]]
        if misses > len(left):  # nothing is an ear: the outline crosses itself
            triangles += [[left[0], *pair] for pair in zip(left[1:-1], left[2:], strict=True)]
            return polygon[np.array(triangles, dtype=np.int64)]
        if _is_ear(flat, ear, left):
            triangles.append(ear)
            del left[place]
            place, misses = place - 1, 0
        else:
            place, misses = place + 1, misses + 1
    return polygon[np.array([*triangles, left], dtype=np.int64)]


def _flatten(outline: np.ndarray) -> np.ndarray:
    """Project an outline of shape `(num_corners, 3)` on its plane, counterclockwise; shape `(num_corners, 2)`."""
    outline = outline - outline[0]
    normal = np.cross(outline, np.roll(outline, -1, axis=0)).sum(axis=0)
    axis = int(abs(normal).argmax())
    kept = [(axis + 1) % 3, (axis + 2) % 3]
    return outline[:, kept if normal[axis] >= 0 else kept[::-1]]


def _is_ear(flat: np.ndarray, ear: list[int], left: list[int]) -> bool:
    """Return whether a corner with its neighbours holds none of the other corners that are left."""
    before, tip, after = flat[ear]
    if _area(before, tip, after) < 0:
        return False
    others = flat[left]
    others = others[~((others == before) | (others == tip) | (others == after)).all(axis=1)]
    sides = [_area(before, tip, others), _area(tip, after, others), _area(after, before, others)]
    return not ((sides[0] >= 0) & (sides[1] >= 0) & (sides[2] >= 0)).any()


def _area(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    """Give twice the signed areas of triangles in the plane."""
    side, other = second - first, third - first
    return side[0] * other[..., 1] - side[1] * other[..., 0]


def sample_surface(
    vertices: np.ndarray, faces: np.ndarray, num_points: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw points uniformly on the surface of a mesh: `(num_points, 3)`, float64, in the unit of the vertices.

    Vertices are of shape `(num_vertices, 3)`, faces vertex indices of shape `(num_triangles, 3)`.
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
