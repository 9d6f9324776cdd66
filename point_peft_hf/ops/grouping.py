"""Taking rows by index, and cutting a cloud into local groups."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .neighbors import knn_indices
from .sampling import farthest_point_sample


def gather_points(values: Tensor, indices: Tensor) -> Tensor:
    """Take rows of each sample by index; differentiable with respect to `values`.

    Args:
        values: Rows to take from, shape (B, N, C).
        indices: Which rows, int64 or int32, shape (B, ...), each within 0 and N - 1 of its own sample.

    Returns:
        The rows, shape (B, ..., C), of the dtype of `values`.

    Raises:
        ValueError: If the shapes do not fit together, or `indices` is not of an integer dtype, or (checked on the CPU
            only) an index is out of range.
    """
    if values.dim() != 3:
        raise ValueError(f"values must have shape (B, N, C), got {tuple(values.shape)}.")
    if indices.dim() < 1 or indices.shape[0] != values.shape[0]:
        raise ValueError(
            f"indices must have shape (B, ...) with B={values.shape[0]} as in values, got {tuple(indices.shape)}."
        )
    if indices.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"indices must be of dtype int64 or int32, got {indices.dtype}.")
    batch, num_rows, channels = values.shape
    # Out of range means a row of another sample of the batch, silently. On a GPU the check would cost a wait.
    if indices.device.type == "cpu" and not torch.compiler.is_compiling() and indices.numel() > 0:
        low, high = torch.aminmax(indices)
        if int(low) < 0 or int(high) >= num_rows:
            raise ValueError(f"indices must be within 0 and {num_rows - 1}, got {int(low)} to {int(high)}.")
    offsets = torch.arange(batch, device=indices.device, dtype=torch.int64) * num_rows
    flat = indices + offsets.view(-1, *([1] * (indices.dim() - 1)))
    return F.embedding(flat, values.reshape(batch * num_rows, channels))


def group_points(
    points: Tensor, num_groups: int, group_size: int, *, skip_near_origin: bool = False
) -> tuple[Tensor, Tensor]:
    """Cut each cloud into local groups around well-spread centres.

    The grouping of Point-BERT (arXiv 2111.14819) and Point-MAE (arXiv 2203.06604): farthest point sampling picks the
    centres, each group is the nearest points of its centre (itself included), relative to it.

    Args:
        points: Coordinates, shape (B, N, 3), in the caller's unit.
        num_groups: Number of groups G, 1 to N.
        group_size: Points in a group k, 1 to N.
        skip_near_origin: As in `farthest_point_sample`. Default False.

    Returns:
        neighborhoods (B, G, k, 3), nearest first and relative to the centre, and group_centers (B, G, 3).

    Raises:
        ValueError: If `points` is not of shape (B, N, 3) or has fewer than `num_groups` or `group_size` points.
    """
    group_centers = gather_points(points, farthest_point_sample(points, num_groups, skip_near_origin=skip_near_origin))
    neighbors = gather_points(points, knn_indices(group_centers, points, group_size))
    return neighbors - group_centers.unsqueeze(2), group_centers
