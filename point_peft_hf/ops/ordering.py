"""Orders of points."""

import torch
from torch import Tensor

from .exporting import State, repeat


def greedy_path(points: Tensor) -> Tensor:
    """Order points along a path that goes on to the nearest point it has not visited, from the first one on.

    The order of the groups in the released code of PointGPT (arXiv 2305.11487; the paper speaks of a Morton code).
    Ties go to the lower index. Takes N steps of O(N) on a table of N x N distances.

    Args:
        points: Coordinates, shape (B, N, 3).

    Returns:
        Indices, int64, shape (B, N), a permutation in each row that starts with 0.

    Raises:
        ValueError: If `points` is not of shape (B, N, 3) with N at least 1.
    """
    if points.dim() != 3 or points.shape[-1] != 3 or points.shape[1] < 1:
        raise ValueError(f"points must have shape (B, N, 3) with N at least 1, got {tuple(points.shape)}.")
    batch, num_points, _ = points.shape
    # Direct differences: expanded squares would reorder points that are almost as near as each other.
    distances = (points.unsqueeze(2) - points.unsqueeze(1)).square().sum(dim=-1)  # (B, N, N)
    numbers = torch.arange(num_points, device=points.device)

    def go_on(state: State) -> tuple[State, Tensor]:
        taken, current = state
        taken = taken | (numbers == current.unsqueeze(1))
        rows = current.view(-1, 1, 1).expand(-1, 1, num_points)
        steps = distances.gather(1, rows).squeeze(1)  # (B, N)
        current = steps.masked_fill(taken, torch.inf).argmin(dim=1)
        return (taken, current), current

    taken = torch.zeros(batch, num_points, dtype=torch.bool, device=points.device)
    first = torch.zeros(batch, dtype=torch.int64, device=points.device)
    path = [first[None]]
    if num_points > 1:
        path.append(repeat(go_on, (taken, first), num_points - 1))
    return torch.cat(path).t().contiguous()


def morton_keys(points: Tensor, cells: float = 100.0) -> Tensor:
    """Place of points on a Morton curve through a grid; sorting by it keeps points together that are near each other.

    As in the released code of PointGST (arXiv 2410.08114): cells are counted from 0 toward both sides, so the one in
    the middle is twice as wide, negative coordinates count as two's complement of 16 bits, and y has the highest of
    each three bits, then x, then z.

    Args:
        points: Coordinates, shape (..., 3).
        cells: Cells of the grid per unit of length.

    Returns:
        Keys, int64, shape (...).
    """
    bits = torch.arange(16, device=points.device)
    codes = (points[..., [2, 0, 1]] * cells).to(torch.int64) & 0xFFFF  # (..., 3): z, x, y
    spread = (codes.unsqueeze(-1) >> bits & 1) << (3 * bits + torch.arange(3, device=points.device).unsqueeze(-1))
    return spread.flatten(-2).sum(dim=-1)
