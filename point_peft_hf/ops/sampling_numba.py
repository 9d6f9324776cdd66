"""Farthest point sampling on CPUs in one compiled loop."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .kernels import share_out

# Points whose largest distance is looked for together, in vectors.
_BLOCK = 128
_SMALLEST = np.int32(-(2**31))


def sample_numba(points: Tensor, num_samples: int, near_origin: float | None = None) -> Tensor:
    """Sample each cloud by itself, in as many threads as PyTorch uses.

    Args:
        points: Float32 coordinates on the CPU, shape (B, N, 3).
        num_samples: Number of points to pick.
        near_origin: Points with |p|^2 up to this are picked only when no other is left; `None`: no such rule.

    Returns:
        Indices, int64, shape (B, num_samples): the same as those of PyTorch's operations.
    """
    clouds = points.contiguous().numpy()
    picked = torch.zeros(len(clouds), num_samples, dtype=torch.int64)
    target = picked.numpy()
    limit = -1.0 if near_origin is None else near_origin
    share_out(lambda first, last: _pick_farthest(clouds[first:last], target[first:last], limit), len(clouds))
    return picked


# No reordering and no fused products: the last bit decides which point is the farthest.
@njit(nogil=True, cache=True)
def _pick_farthest(clouds, picked, near_origin):
    """Fill `picked`, (b, num_samples), which holds zeros, for `clouds`, (b, N, 3)."""
    num_points = clouds.shape[1]
    num_blocks = (num_points + _BLOCK - 1) // _BLOCK
    x = np.zeros(num_blocks * _BLOCK, np.float32)
    y, z, nearest = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    # Bits of floats as integers have their order, and -0.0, which fills the last block, is the smallest of them all:
    # below the -1 of points that are skipped. A largest integer is found with vector instructions.
    bits = nearest.view(np.int32)
    for cloud in range(len(clouds)):
        for i in range(num_points):
            x[i], y[i], z[i] = clouds[cloud, i]
            is_near = np.float64(x[i] * x[i] + y[i] * y[i] + z[i] * z[i]) <= near_origin
            nearest[i] = -1.0 if is_near else np.inf
        for i in range(num_points, len(nearest)):
            nearest[i] = -0.0
        last = 0
        for step in range(1, picked.shape[1]):
            last_x, last_y, last_z = x[last], y[last], z[last]
            largest, where = _SMALLEST, 0
            for block in range(num_blocks):
                start = block * _BLOCK  # a range with steps would cost the check of negative indices
                for i in range(_BLOCK):
                    dx = x[start + i] - last_x
                    dy = y[start + i] - last_y
                    dz = z[start + i] - last_z
                    distance, before = dx * dx + dy * dy + dz * dz, nearest[start + i]
                    nearest[start + i] = distance if distance < before else before
                in_block = _SMALLEST
                for i in range(_BLOCK):
                    in_block = max(in_block, bits[start + i])
                if in_block > largest:
                    largest, where = in_block, start
            for i in range(where, where + _BLOCK):
                if bits[i] == largest:
                    last = i
                    break
            picked[cloud, step] = last
