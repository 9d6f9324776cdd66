"""Tiles of scans that are too large for one pass of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import PointCloudError
from .voxels import MAX_CELLS, occupied_cells

MAX_VOXELS = 100_000
# A tile reaches into its neighbours by this share of the side that it had if it were a flat square.
_OVERLAP = 1 / 16


@dataclass
class Tile:
    """Some points of a scan that a model sees at once.

    Attributes:
        rows: Numbers of its points, ascending, of shape `(num_points,)`: those of its core and around it.
        core: Whether a point belongs to the core, of shape `(num_points,)`. Each point of a scan is in one core.
    """

    rows: np.ndarray
    core: np.ndarray


def cut_tiles(
    points: np.ndarray,
    grid_size: float,
    max_voxels: int = MAX_VOXELS,
    overlap: float | None = None,
    name: str = "the scan",
) -> Iterator[Tile]:
    """Cut a scan into boxes that overlap, by halving along the longest side until each has few voxels.

    The tiles depend on the points alone, not on their order. Tiles without points do not come up.

    Args:
        points: Coordinates of shape `(num_points, 3)`, float32.
        grid_size: Edge of a voxel, in the unit of the coordinates.
        max_voxels: Voxels of a tile at most, those around its core included, on a grid that starts at the lowest
            corner of the scan. The grid of a processor starts elsewhere, and may have a few more.
        overlap: How far a tile reaches into its neighbours, in the unit of the coordinates; by default a 16th of the
            root of `max_voxels`, in voxels, which is 20 of them for 100,000.
        name: What messages call the scan.

    Yields:
        The tiles, one after the other; neighbours come soon after each other.

    Raises:
        ValueError: If `max_voxels` or `overlap` is too small or too large.
        PointCloudError: If the voxels within `overlap` of a single one are more than `max_voxels`.
    """
    if overlap is None:
        margin = max(1, round(_OVERLAP * max(max_voxels, 1) ** 0.5))
    else:
        margin = round(overlap / grid_size)
    if max_voxels < 1 or not 0 <= margin < MAX_CELLS // 4:
        raise ValueError(
            f"max_voxels must be at least 1, and the overlap from 0 to {MAX_CELLS // 4} voxels of {grid_size:g}; got "
            f"{max_voxels} and {overlap}"
        )
    low = points.min(axis=0).astype(np.float64)
    cells = occupied_cells(points, low, grid_size, name)
    rows = np.arange(len(points), dtype=np.int32 if len(points) < 2**31 else np.int64)
    cutter = _Cutter(points, low, grid_size, max_voxels, margin, name)
    no_bounds = np.array([[0, 0, 0], [2**31 - 1] * 3])
    yield from cutter.cut(cells, rows, no_bounds)


@dataclass
class _Cutter:
    points: np.ndarray
    low: np.ndarray
    grid_size: float
    max_voxels: int
    margin: int
    name: str

    def cut(self, cells: np.ndarray, rows: np.ndarray, core: np.ndarray) -> Iterator[Tile]:
        """Cut a box; cells and rows are those of its core and around it, `core` the first cells and those past it."""
        if len(cells) <= self.max_voxels and np.ptp(cells, axis=0).max(initial=0) < MAX_CELLS - 2:
            inside = np.ones(len(rows), dtype=bool)
            for axis in range(3):
                place = self.points[rows, axis]
                inside &= place >= self._place(core[0, axis], axis)
                inside &= place < self._place(core[1, axis], axis)
            if inside.any():
                yield Tile(rows, inside)
            return
        own = cells[((cells >= core[0]) & (cells < core[1])).all(axis=1)]
        if len(own) == 0:
            return
        axis = int(np.ptp(own, axis=0).argmax())
        first, last = int(own[:, axis].min()), int(own[:, axis].max())
        if first == last:
            raise PointCloudError(
                f"{self.name}: within {self.margin} voxels of {self.grid_size:g} around one of them there are "
                f"{len(cells)} others, more than a tile may have (max_voxels {self.max_voxels}); take a larger "
                "max_voxels, a smaller overlap or a larger grid_size"
            )
        border = min(max(int(np.median(own[:, axis])), first + 1), last)
        below, above = cells[:, axis] < border + self.margin, cells[:, axis] >= border - self.margin
        place = self.points[rows, axis]
        under = place < self._place(border + self.margin, axis)
        over = place >= self._place(border - self.margin, axis)
        del place
        for keep, chosen, side in ((below, under, 1), (above, over, 0)):
            half = core.copy()
            half[side, axis] = border
            yield from self.cut(cells[keep], rows[chosen], half)

    def _place(self, cell: int, axis: int) -> float:
        """Give the coordinate where a cell starts; what is below and above it must agree for all tiles."""
        return -np.inf if cell <= 0 else float(self.low[axis] + float(cell) * self.grid_size)
