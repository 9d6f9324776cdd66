"""Positions of grid cells along space-filling curves: the order in which scene encoders read voxels.

The curves are those of Point Transformer V3 (arXiv 2312.10035): the Z-order, the Hilbert curve by Skilling's transform
(AIP Conf. Proc. 707, 2004), and each of them with x and y exchanged.
"""

from __future__ import annotations

import torch

CURVES = ("z", "z-trans", "hilbert", "hilbert-trans")
# Three coordinates of 16 bits, with room for the number of the cloud above them in an int64.
MAX_DEPTH = 16
CODE_BITS = 3 * MAX_DEPTH
# Of the spread of 16 bits to every third place: shift, and the bits that stay.
_SPREAD = ((16, 0x0000FF0000FF), (8, 0x00F00F00F00F), (4, 0x0C30C30C30C3), (2, 0x249249249249))


def grid_depth(largest: torch.Tensor) -> torch.Tensor:
    """Number of bits of the largest coordinate plus one: how many levels a curve through a grid has.

    Args:
        largest: Largest coordinates, int64, of any shape.

    Returns:
        The depths, of the same shape.

    Raises:
        ValueError: If a depth is above 16.
    """
    levels = torch.arange(MAX_DEPTH + 1, device=largest.device)
    depth = (torch.bitwise_right_shift(largest.unsqueeze(-1) + 1, levels) > 0).sum(dim=-1)
    if bool((depth > MAX_DEPTH).any()):
        raise ValueError(
            f"A grid must have fewer than {2**MAX_DEPTH} cells along each axis, but `grid_coordinates` reach "
            f"{int(largest.max())}. Use a larger `grid_size`, or cut the scan into tiles."
        )
    return depth


def curve_codes(grid: torch.Tensor, depth: torch.Tensor | int, curve: str) -> torch.Tensor:
    """Positions of cells along a curve.

    Args:
        grid: Cells of shape `(N, 3)`, integers from 0 to below `2 ** depth`.
        depth: Number of levels of the curve, for all cells or for each, of shape `(N,)`.
        curve: "z", "hilbert", or one of them with "-trans": with x and y exchanged.

    Returns:
        Positions of shape `(N,)`, int64, from 0 to below `8 ** depth`.

    Raises:
        ValueError: If there is no such curve.
    """
    if curve not in CURVES:
        raise ValueError(f"A curve must be one of {', '.join(map(repr, CURVES))}, got {curve!r}.")
    x, y, z = grid.to(torch.int64).unbind(-1)
    if curve.endswith("-trans"):
        x, y = y, x
    return _hilbert(x, y, z, depth) if curve.startswith("hilbert") else _interleave(x, y, z)


def _interleave(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return _spread(x) << 2 | _spread(y) << 1 | _spread(z)


def _spread(values: torch.Tensor) -> torch.Tensor:
    """Put bit i of values of 16 bits to place 3 i."""
    for shift, kept in _SPREAD:
        values = (values | values << shift) & kept
    return values


def _hilbert(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, depth: torch.Tensor | int) -> torch.Tensor:
    axes = [x, y, z]
    deepest = depth if isinstance(depth, int) else int(depth.max()) if depth.numel() else 0
    for level in range(deepest - 1, 0, -1):
        low: torch.Tensor | int = (1 << level) - 1
        if not isinstance(depth, int):
            # A level that a cloud's own curve does not have changes nothing.
            low = torch.where(depth > level, low, 0)
        for axis in range(3):
            is_set = -(axes[axis] >> level & 1)  # All bits, or none.
            # Where the bit is set, the lower bits of x are inverted; elsewhere they change places with the axis' own.
            exchanged = (axes[0] ^ axes[axis]) & low & ~is_set
            axes[0] = axes[0] ^ (low & is_set | exchanged)
            if axis:
                axes[axis] = axes[axis] ^ exchanged
    code = _interleave(*axes)
    shift = 1
    while shift < CODE_BITS:
        # From the Gray code to the number: each bit is the parity of those above it.
        code = code ^ code >> shift
        shift *= 2
    return code
