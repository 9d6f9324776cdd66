"""Nearest neighbours."""

import torch
from torch import Tensor

# Entries of the matrix of distances made at a time, in two buffers: on the CPU few enough for the cache, on a GPU few
# enough for the memory (32 Mi float32 entries are 128 MiB).
_CPU_ENTRIES = 2 * 1024 * 1024
_GPU_ENTRIES = 32 * 1024 * 1024


@torch.no_grad()
def knn_indices(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Find the k nearest points of each query by Euclidean distance.

    Args:
        queries: Coordinates to search from, shape (B, M, 3).
        points: Coordinates to search in, shape (B, N, 3), in the same unit. float16 and bfloat16 are computed in
            float32.
        k: Number of neighbours, 1 to N. A query that is one of the points is its own first neighbour.

    Returns:
        Indices into `points`, nearest first, int64, shape (B, M, k). Points at equal distance come in no particular
            order.

    Raises:
        ValueError: If the shapes do not fit together or `k` is not within 1 to N.
    """
    if queries.dim() != 3 or points.dim() != 3 or queries.shape[-1] != 3 or points.shape[-1] != 3:
        raise ValueError(
            f"queries and points must have shapes (B, M, 3) and (B, N, 3), got {tuple(queries.shape)} and "
            f"{tuple(points.shape)}."
        )
    if queries.shape[0] != points.shape[0]:
        raise ValueError(f"queries and points differ in batch size: {queries.shape[0]} and {points.shape[0]}.")
    if not 1 <= k <= points.shape[1]:
        raise ValueError(f"k must be within 1 and the {points.shape[1]} points of a cloud, got {k}.")
    dtype = torch.promote_types(torch.promote_types(queries.dtype, points.dtype), torch.float32)
    queries, points = queries.to(dtype), points.to(dtype)
    if torch.compiler.is_compiling():
        # The compiler fuses this; the loop over blocks below would be unrolled.
        return _nearest((queries.unsqueeze(2) - points.unsqueeze(1)).square().sum(dim=-1), k)
    return _search_blocks(queries, points, k)


def _nearest(squared: Tensor, k: int) -> Tensor:
    """Return the indices of the k smallest entries along the last dimension, smallest first."""
    return squared.topk(k, dim=-1, largest=False).indices


def _search_blocks(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Search in blocks of clouds and queries of bounded memory; arguments as `knn_indices`.

    Squared distances are summed from direct differences. The expansion |q|^2 + |p|^2 - 2 q.p is one matrix product,
    but cancels where points are close together or far from the origin, the more so in the reduced precision that
    autocast or TF32 give matrix products. Within the cache it is not faster either: the selection takes most of the
    time.
    """
    batch, num_queries, _ = queries.shape
    num_points = points.shape[1]
    budget = _CPU_ENTRIES if points.device.type == "cpu" else _GPU_ENTRIES
    rows = max(1, min(num_queries, budget // num_points))
    clouds = max(1, min(batch, budget // (rows * num_points)))
    query_planes = queries.permute(2, 0, 1).unsqueeze(-1)
    point_planes = points.permute(2, 0, 1).unsqueeze(-2).contiguous()
    buffers = points.new_empty((2, clouds, rows, num_points))
    indices = torch.empty((batch, num_queries, k), dtype=torch.int64, device=points.device)
    for b in range(0, batch, clouds):
        there = point_planes[:, b : b + clouds]
        for start in range(0, num_queries, rows):
            here = query_planes[:, b : b + clouds, start : start + rows]
            total, term = buffers[:, : here.shape[1], : here.shape[2]]
            torch.sub(here[0], there[0], out=total).square_()
            for axis in (1, 2):
                torch.sub(here[axis], there[axis], out=term).square_()
                total.add_(term)
            indices[b : b + clouds, start : start + rows] = _nearest(total, k)
    return indices
