"""Voxels: one point each, and the way back to all points."""

from __future__ import annotations

import numpy as np

from ..errors import PointCloudError

# Grid cells along an axis that the space-filling curves of the models have bits for.
MAX_CELLS = 2**16
# Cells of a whole scan, which is cut into tiles before a model sees it; three such numbers make an int64.
_MAX_SCAN_CELLS = 2**21
_CHUNK = 1 << 20


def voxelize(coordinates: np.ndarray, grid_size: float, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort points into voxels, and choose the first point of each; a side may have 65,536 cells.

    The division is done in float64, so that points on the border of two voxels fall where the published code puts
    them under NumPy 2.

    Returns:
        Grid coordinates of the voxels of shape `(num_voxels, 3)`, int64, from 0 on, in ascending order of x, y, z;
        the number of the first point of each voxel, of shape `(num_voxels,)`; and the voxel of each point, of shape
        `(num_points,)`.
    """
    _check_cells(coordinates, grid_size, name)
    grid = np.floor(coordinates.astype(np.float64) / grid_size).astype(np.int64)
    grid -= grid.min(axis=0)
    key = (grid[:, 0] << 32) | (grid[:, 1] << 16) | grid[:, 2]
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return grid[first], first, inverse


def _check_cells(coordinates: np.ndarray, grid_size: float, name: str) -> None:
    low, high = (coordinates.min(axis=0).astype(np.float64), coordinates.max(axis=0).astype(np.float64))
    # Two cells of room: rounding may add one at either end.
    cells = np.floor((high - low) / grid_size) + 2
    if cells.max() <= MAX_CELLS:
        return
    axis = int(cells.argmax())
    extent = high[axis] - low[axis]
    most = np.percentile(coordinates[:, axis].astype(np.float64), [0.5, 99.5])
    stray = f" (99 % of the points span {most[1] - most[0]:.6g}: are the others stray points?)"
    raise PointCloudError(
        f"{name}: spans {extent:.6g} along {'xyz'[axis]}, which is {cells[axis]:.0f} cells of {grid_size:g}, and a "
        f"model takes {MAX_CELLS} at most{stray if 2 * (most[1] - most[0]) < extent else ''}; cut it into tiles "
        f"(load_scenes and ScenePredictor do so), or take a grid_size of at least {extent / (MAX_CELLS - 2):.3g}"
    )


def occupied_cells(points: np.ndarray, low: np.ndarray, grid_size: float, name: str) -> np.ndarray:
    """Find the cells of a scan that have points in them, piece by piece, so that memory grows with the cells.

    Returns cells of shape `(num_cells, 3)`, int32, counted from the lowest corner `low`, of shape `(3,)`.
    """
    extent = float((points.max(axis=0).astype(np.float64) - low).max())
    if extent / grid_size >= _MAX_SCAN_CELLS:
        raise PointCloudError(
            f"{name}: spans {extent:.6g}, more than {_MAX_SCAN_CELLS} cells of {grid_size:g}; are there stray points, "
            "or is its unit another one than that of the grid?"
        )
    pieces = []
    for start in range(0, len(points), _CHUNK):
        cells = np.floor((points[start : start + _CHUNK] - low) / grid_size).astype(np.int64)
        pieces.append(_distinct((cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]))
    keys = _distinct(np.concatenate(pieces))
    mask = _MAX_SCAN_CELLS - 1
    return np.stack([keys >> 42, (keys >> 21) & mask, keys & mask], axis=1).astype(np.int32)


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Sort keys in place and leave out repeated ones, many times faster than `np.unique`, which hashes integers."""
    keys.sort()
    keep = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=keep[1:])
    return keys[keep]
