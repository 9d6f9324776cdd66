"""Convolution over occupied voxels, whose output is at the same voxels (submanifold, arXiv 1706.01307).

y[p] = bias + sum over the offsets o of x[p + o] W[o], where the voxel p + o of the same cloud is occupied. It is a
dense convolution with zeros in the empty cells, read at the occupied ones. Which voxels are neighbours is looked up
once, in a [`NeighborTable`] that all convolutions on the same voxels share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Rows that are worked on at once: their neighbours fit into the cache of a core, or of a GPU into its memory.
_CPU_ROWS, _GPU_ROWS = 1 << 13, 1 << 19


class _Chunk(NamedTuple):
    """Some consecutive rows and their neighbours, those at the same offset one after the other.

    Attributes:
        start: First row.
        stop: Row after the last.
        outputs: The rows, as often as they have neighbours, of shape `(P,)`.
        inputs: The neighbours, of shape `(P,)`.
        bounds: Where the neighbours of each offset begin, and `P`. The centre is left out.
        order: Numbers of the neighbours, those of a row one after the other, of shape `(P,)`.
        starts: Where those of each row begin, of shape `(stop - start,)`.
    """

    start: int
    stop: int
    outputs: torch.Tensor
    inputs: torch.Tensor
    bounds: tuple[int, ...]
    order: torch.Tensor
    starts: torch.Tensor

    def offsets(self) -> Iterator[tuple[int, int, int]]:
        """Number of each offset that has neighbours, with the range of these."""
        centre = (len(self.bounds) - 1) // 2
        for index, (start, stop) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            if start < stop:
                yield index + (index >= centre), start, stop


@dataclass(frozen=True)
class NeighborTable:
    """Which occupied voxels are neighbours.

    Attributes:
        kernel_size: Cells along each axis of the neighbourhood, an odd number.
        chunks: The neighbours, by rows.
    """

    kernel_size: int
    chunks: tuple[_Chunk, ...]

    @classmethod
    @torch.no_grad()
    def build(cls, grid: torch.Tensor, batch_index: torch.Tensor, kernel_size: int = 3) -> NeighborTable:
        """Look up the neighbours of voxels.

        Args:
            grid: Cells of shape `(N, 3)`, integers of at least 0, no cell twice in a cloud.
            batch_index: Number of the cloud of each voxel, of shape `(N,)`.
            kernel_size: Cells along each axis, an odd number.

        Returns:
            The table.

        Raises:
            ValueError: If a cloud has a voxel twice, or the grids are too large to number their cells.
        """
        neighbors = _find_neighbors(grid.to(torch.int64), batch_index.to(torch.int64), kernel_size)
        size = _CPU_ROWS if grid.device.type == "cpu" else _GPU_ROWS
        chunks = (_make_chunk(part, i * size) for i, part in enumerate(neighbors.split(size, dim=1)))
        return cls(kernel_size, tuple(chunks))


def _find_neighbors(grid: torch.Tensor, batch_index: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """The neighbour of each voxel at each offset but the centre, of shape `(kernel_size ** 3 - 1, N)`; -1 for none."""
    reach, num_rows = kernel_size // 2, len(grid)
    # Numbers of the cells in a box with an empty margin, so that the neighbour at an offset has the number of the cell
    # plus a constant.
    sizes = grid.amax(dim=0).add(2 * reach + 1).tolist() if num_rows else [1, 1, 1]
    volume = sizes[0] * sizes[1] * sizes[2]
    if num_rows and volume * (int(batch_index.max()) + 1) >= 2**63:
        raise ValueError(
            f"The grids of the batch are too large to number their cells: {sizes} cells. Use a larger `grid_size`, or "
            "fewer clouds in a batch."
        )
    steps = (sizes[1] * sizes[2], sizes[2], 1)
    cells = batch_index * volume + sum((grid[:, axis] + reach) * steps[axis] for axis in range(3))
    rows = None
    if bool((cells[1:] < cells[:-1]).any()):
        cells, rows = cells.sort()
    if bool((cells[1:] == cells[:-1]).any()):
        raise ValueError("`grid_coordinates` have a cell twice in one cloud. Keep one point a voxel.")
    count = kernel_size**3
    found = torch.full((count, num_rows), -1, dtype=torch.int32, device=grid.device)
    own = torch.arange(num_rows, dtype=torch.int32, device=grid.device)
    for offset in range(0, count // 2, kernel_size):
        x, y = offset // kernel_size**2 - reach, offset // kernel_size % kernel_size - reach
        wanted = cells + (x * steps[0] + y * steps[1] - reach)
        # The cells of a column along z have consecutive numbers: one search serves them all.
        place = torch.searchsorted(cells, wanted, out_int32=True)
        for index in range(offset, min(offset + kernel_size, count // 2)):
            # None is beyond the last cell, as all of these offsets lead to cells before the own one.
            is_there = cells.index_select(0, place) == wanted
            here, there = own[is_there], place[is_there]
            found[index, here.long()] = there
            # The other way round it is the neighbour at the opposite offset.
            found[count - 1 - index, there.long()] = here
            place, wanted = place + is_there, wanted + 1
    neighbors = torch.cat([found[: count // 2], found[count // 2 + 1 :]])
    if rows is None:
        return neighbors
    inverse = torch.empty_like(rows)
    inverse[rows] = torch.arange(num_rows, device=rows.device)
    named = torch.cat([rows.to(torch.int32), rows.new_full((1,), -1, dtype=torch.int32)])
    return named[neighbors.index_select(1, inverse).long()]


def _make_chunk(neighbors: torch.Tensor, start: int) -> _Chunk:
    is_there = neighbors >= 0  # (offsets, rows)
    counts = is_there.sum(dim=0, dtype=torch.int32)
    numbers = is_there.flatten().cumsum(0, dtype=torch.int32).sub_(1).view(is_there.shape)
    by_row = is_there.t().contiguous()
    outputs = is_there.nonzero()[:, 1].to(torch.int32).add_(start)
    ends = is_there.sum(dim=1).cumsum(0).tolist()
    return _Chunk(
        start,
        start + neighbors.shape[1],
        outputs,
        neighbors[is_there],
        (0, *ends),
        numbers.t()[by_row],
        counts.cumsum(0, dtype=torch.int32) - counts,
    )


def submanifold_conv(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, table: NeighborTable
) -> torch.Tensor:
    """Convolve over occupied voxels.

    Nothing that is gathered is kept for the backward pass, and a frozen weight costs it nothing.

    Args:
        rows: Features of the voxels, of shape `(N, in_channels)`.
        weight: Of shape `(kernel_size, kernel_size, kernel_size, in_channels, out_channels)`: axes x, y, z, index 0 is
            the smallest offset. Of shape `(kernel_size, kernel_size, kernel_size, channels)` each channel is convolved
            by itself (depth-wise).
        bias: Of shape `(out_channels,)`, or `None`.
        table: The neighbours of the voxels, of the kernel size of the weight.

    Returns:
        Of shape `(N, out_channels)`; of half precision, the neighbours are added up in float32.
    """
    if torch.is_autocast_enabled(rows.device.type):
        dtype = torch.get_autocast_dtype(rows.device.type)
        rows, weight, bias = rows.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _SubmanifoldConv.apply(rows, weight, bias, table)


class _SubmanifoldConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weight, bias, table):
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight)
        ctx.table = table
        return _convolve(rows, weight.flatten(0, 2).unbind(), bias, table)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_rows = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # The neighbour at an offset has the voxel at the opposite one.
            matrices = reversed(weight.flatten(0, 2).unbind())
            opposite = [matrix.mT if matrix.dim() == 2 else matrix for matrix in matrices]
            grad_rows = _convolve(grad, opposite, None, ctx.table)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(rows, grad, weight, ctx.table)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=0)
        return grad_rows, grad_weight, grad_bias, None


def _convolve(rows, matrices, bias, table: NeighborTable) -> torch.Tensor:
    """Sum of the neighbours, each times the matrix (or, depth-wise, the vector) of its offset."""
    centre = matrices[len(matrices) // 2]
    multiply = torch.mm if centre.dim() == 2 else torch.mul
    result = rows.new_empty(len(rows), centre.shape[-1])
    most = max((len(chunk.inputs) for chunk in table.chunks), default=0)
    # Two buffers for all chunks: new memory costs more than what is computed in it.
    gathered, products = (rows.new_empty(most, size) for size in (centre.shape[0], centre.shape[-1]))
    for chunk in table.chunks:
        own, inputs = rows[chunk.start : chunk.stop], gathered[: len(chunk.inputs)]
        output = result[chunk.start : chunk.stop]
        multiply(own, centre, out=output)
        if bias is not None:
            output += bias
        torch.index_select(rows, 0, chunk.inputs, out=inputs)
        for offset, start, stop in chunk.offsets():
            multiply(inputs[start:stop], matrices[offset], out=products[start:stop])
        # Sums in a fixed order, in float32.
        output += F.embedding_bag(chunk.order, products[: len(inputs)], chunk.starts, mode="sum")
    return result


def _outer(inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    return inputs.t() @ outputs


def _inner(inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    return (inputs * outputs).sum(dim=0)


def _weight_gradient(rows, grad, weight, table: NeighborTable) -> torch.Tensor:
    result = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    matrices = result.flatten(0, 2)
    multiply = _outer if matrices.dim() == 3 else _inner
    matrices[len(matrices) // 2] = multiply(rows, grad)
    for chunk in table.chunks:
        inputs, outputs = rows.index_select(0, chunk.inputs), grad.index_select(0, chunk.outputs)
        for offset, start, stop in chunk.offsets():
            matrices[offset] += multiply(inputs[start:stop], outputs[start:stop])
    return result.to(weight.dtype)
