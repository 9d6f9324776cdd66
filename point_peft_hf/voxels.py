"""What a scene encoder and its adapters know of the voxels of a stage: places, clouds, orders, patches, neighbours.

Nothing of it has a gradient or depends on features, so it is computed once, before the first block. All of it is
computed for each cloud by itself: a cloud is encoded in the same way whatever else is in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from .ops import Clusters, NeighborTable, cluster_mean, curve_codes, grid_depth
from .ops.curves import CODE_BITS


class Order(NamedTuple):
    """The voxels of all clouds along a curve, in the arrangement of [`Patches`].

    Attributes:
        rows: Number of the voxel at each place, of shape `(N,)`.
        places: Place of each voxel, of shape `(N,)`.
    """

    rows: torch.Tensor
    places: torch.Tensor


class Piece(NamedTuple):
    """Voxels that attend to voxels of their own cloud, in a run that is shorter than a patch.

    Attributes:
        start: First place.
        stop: Place after the last.
        more: Places that they attend to besides themselves: those in front of them, up to the size of a patch.
    """

    start: int
    stop: int
    more: range


class Patches(NamedTuple):
    """How the orders of a batch are cut into patches.

    The order of each cloud is cut into runs of `size`; a last run that is shorter attends to the last `size` voxels of
    the cloud, or to the whole cloud if that is smaller. Places are numbered such that the full runs of all clouds come
    first, then the short ones.

    Attributes:
        size: Voxels of a patch.
        num_full: Number of full runs.
        pieces: The short runs.
        arrangement: Place in the concatenated orders of the clouds, for each place here; `None` if it is the same.
    """

    size: int
    num_full: int
    pieces: tuple[Piece, ...]
    arrangement: torch.Tensor | None

    @classmethod
    def cut(cls, counts: Sequence[int], size: int, device: torch.device | str | None = None) -> Patches:
        """Cut clouds into patches."""
        full, short, pieces = [], [], []
        num_full, start = sum(count // size for count in counts), 0
        place, done = num_full * size, 0
        for count in counts:
            rest = count % size
            done += count - rest
            full.append(range(start, start + count - rest))
            short.append(range(start + count - rest, start + count))
            if rest:
                more = range(done - (size - rest), done) if count > size else range(0)
                pieces.append(Piece(place, place + rest, more))
            start, place = start + count, place + rest
        runs = [run for run in (*full, *short) if len(run)]
        if all(a.stop == b.start for a, b in zip(runs[:-1], runs[1:], strict=True)):
            return cls(size, num_full, tuple(pieces), None)
        arrangement = torch.cat([torch.arange(run.start, run.stop) for run in runs]).to(device)
        return cls(size, num_full, tuple(pieces), arrangement)


@dataclass(frozen=True)
class VoxelStage:
    """The voxels that the blocks of a stage work on.

    Attributes:
        coordinates: Of shape `(N, 3)`, in metres: of the input, then means of what was joined.
        grid: Cells of shape `(N, 3)`, int64.
        batch_index: Number of the cloud of each voxel, ascending, of shape `(N,)`.
        counts: Number of voxels of each cloud.
        codes: Positions along the curves, one row a curve, of shape `(num_curves, N)`.
        orders: The voxels along each curve.
        patches: How the orders are cut.
        clusters: Which voxels of the stage before were joined; `None` in the first stage.
        known: What is computed at the first use, and shared by all blocks: see `neighbors`.
    """

    coordinates: torch.Tensor
    grid: torch.Tensor
    batch_index: torch.Tensor
    counts: tuple[int, ...]
    codes: torch.Tensor
    orders: tuple[Order, ...]
    patches: Patches
    clusters: Clusters | None = None
    known: dict = field(default_factory=dict)

    def neighbors(self, kernel_size: int = 3) -> NeighborTable:
        """Which voxels are neighbours."""
        if kernel_size not in self.known:
            self.known[kernel_size] = NeighborTable.build(self.grid, self.batch_index, kernel_size)
        return self.known[kernel_size]

    @classmethod
    @torch.no_grad()
    def first(
        cls,
        coordinates: torch.Tensor,
        grid: torch.Tensor,
        batch_index: torch.Tensor,
        curves: Sequence[str],
        patch_size: int,
    ) -> VoxelStage:
        """The voxels of the input.

        Args:
            coordinates: Of shape `(N, 3)`.
            grid: Of shape `(N, 3)`.
            batch_index: Of shape `(N,)`.
            curves: Names of the curves, in the order in which the blocks use them.
            patch_size: Voxels of a patch.
        """
        counts = torch.bincount(batch_index)
        codes = _codes(grid, batch_index, len(counts), curves)
        return _stage(coordinates, grid, batch_index, counts, codes, patch_size)

    @torch.no_grad()
    def pooled(
        self, stride: int, patch_size: int, curves: Sequence[str], shuffle: Sequence[int] | None, by_code: bool
    ) -> VoxelStage:
        """The voxels of the next stage.

        Args:
            stride: Cells along each axis that are joined to one.
            patch_size: Voxels of a patch there.
            curves: Names of the curves there.
            shuffle: Which of the curves of this stage takes the place of each, where codes are not computed anew.
            by_code: Join voxels by their positions along the first curve, and shorten all positions; otherwise join
                them by their cells, and compute the positions anew.
        """
        bits = stride.bit_length() - 1
        if by_code:
            keys = self.batch_index << CODE_BITS | self.codes[0] >> 3 * bits
            clusters = Clusters.from_keys(keys)
            grid = self.grid.index_select(0, clusters.firsts) >> bits
        else:
            cells = torch.div(self.grid, stride, rounding_mode="floor")
            x, y, z = cells.unbind(-1)
            # Fewer than 2 ** 16 cells along each axis.
            clusters = Clusters.from_keys(self.batch_index << CODE_BITS | x << 32 | y << 16 | z)
            grid = cells.index_select(0, clusters.firsts)
        batch_index = self.batch_index.index_select(0, clusters.firsts)
        coordinates = cluster_mean(self.coordinates, clusters)
        counts = torch.bincount(batch_index, minlength=len(self.counts))
        if by_code:
            codes = self.codes.index_select(1, clusters.firsts) >> 3 * bits
            codes = codes if shuffle is None else codes[list(shuffle)]
        else:
            codes = _codes(grid, batch_index, len(self.counts), curves)
        return _stage(coordinates, grid, batch_index, counts, codes, patch_size, clusters)


def _codes(grid: torch.Tensor, batch_index: torch.Tensor, num_clouds: int, curves: Sequence[str]) -> torch.Tensor:
    largest = torch.zeros(num_clouds, dtype=torch.int64, device=grid.device)
    largest.scatter_reduce_(0, batch_index, grid.amax(dim=1), "amax")
    depth = grid_depth(largest)
    # A curve through another number of levels is another curve, so each cloud has its own.
    depths = int(depth[0]) if num_clouds == 1 else depth.index_select(0, batch_index)
    return torch.stack([curve_codes(grid, depths, curve) for curve in curves])


def _stage(coordinates, grid, batch_index, counts, codes, patch_size, clusters=None) -> VoxelStage:
    counts = tuple(counts.tolist())
    patches = Patches.cut(counts, patch_size, grid.device)
    numbers = torch.arange(len(grid), device=grid.device)
    orders = []
    for code in codes:
        rows = (batch_index << CODE_BITS | code).argsort()
        rows = rows if patches.arrangement is None else rows[patches.arrangement]
        orders.append(Order(rows, torch.empty_like(rows).scatter_(0, rows, numbers)))
    return VoxelStage(coordinates, grid, batch_index, counts, codes, tuple(orders), patches, clusters)
