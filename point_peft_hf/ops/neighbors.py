"""Nearest neighbours."""

import torch
from torch import Tensor

from .differences import squared_differences
from .exporting import is_exporting_for_onnx

# Entries of the matrix of distances made at a time, 16 bytes each: on the CPU few enough for the cache, on a GPU few
# enough for the memory.
_CPU_ENTRIES = 128 * 1024
_GPU_ENTRIES = 16 * 1024 * 1024
# Up to so many threads NumPy, which selects with vector instructions but on one thread, is faster than PyTorch.
_NUMPY_THREADS = 2


@torch.no_grad()
def knn_indices(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Find the k nearest points of each query by Euclidean distance.

    Args:
        queries: Coordinates to search from, shape (B, M, 3).
        points: Coordinates to search in, shape (B, N, 3), in the same unit. float16 and bfloat16 are computed in
            float32.
        k: Number of neighbours, 1 to N. A query that is one of the points is its own first neighbour.

    Returns:
        Indices into `points`, nearest first, int64, shape (B, M, k). Of points at equal distance the lower index
            comes first.

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
        # The compiler fuses this; the loop over blocks below would be unrolled. One axis at a time, as what does not
        # fuse is slow on rows of three.
        axes = zip(queries.unbind(dim=-1), points.unbind(dim=-1), strict=True)
        offsets = (here.unsqueeze(2) - there.unsqueeze(1) for here, there in axes)
        x, y, z = (offset * offset for offset in offsets)
        return _nearest(x + y + z, k)
    return _search_blocks(queries, points, k)


def _nearest(squared: Tensor, k: int) -> Tensor:
    """Return the indices of the k smallest entries along the last dimension, smallest first, then by index.

    The bits of a float that is not negative are in the order of its value. With the index in the lower half, integers
    of 64 bits are in the order that is wanted, and no two are equal: every way to select them finds the same.
    """
    if is_exporting_for_onnx():  # which has no such bits, but says that the lower index comes first
        return squared.topk(k, dim=-1, largest=False).indices
    if squared.dtype == torch.float64:  # no room for the index
        return squared.sort(dim=-1, stable=True).indices[..., :k]
    keys = squared.view(torch.int32).long()
    keys <<= 32
    keys |= torch.arange(squared.shape[-1], device=squared.device)
    return _smallest(keys, k) & 0xFFFFFFFF


def _smallest(keys: Tensor, k: int) -> Tensor:
    """Return the k smallest entries along the last dimension in order; may change the order of `keys`."""
    compiling = torch.compiler.is_compiling()
    if compiling or keys.device.type != "cpu" or torch.get_num_threads() > _NUMPY_THREADS:
        return keys.topk(k, dim=-1, largest=False).values
    keys.numpy().partition(k - 1, axis=-1)
    smallest = keys[..., :k].contiguous()
    smallest.numpy().sort(axis=-1)
    return smallest


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
            squared_differences(here[0], there[0], out=total)
            for axis in (1, 2):
                total.add_(squared_differences(here[axis], there[axis], out=term))
            indices[b : b + clouds, start : start + rows] = _nearest(total, k)
    return indices
