"""Farthest point sampling in one launch, for GPUs. Only the CUDA builds of PyTorch bring Triton with them."""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

# Coordinates and distances of a whole cloud stay in the registers of one program.
MAX_POINTS = 16384


@triton.jit
def _pick_farthest(
    points,
    picked,
    num_points,
    near_origin,
    NUM_SAMPLES: tl.constexpr,
    SKIP_NEAR_ORIGIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    cloud = tl.program_id(0)
    points += cloud * num_points * 3
    picked += cloud * NUM_SAMPLES
    offsets = tl.arange(0, BLOCK)
    inside = offsets < num_points
    x = tl.load(points + 3 * offsets, mask=inside, other=0.0)
    y = tl.load(points + 3 * offsets + 1, mask=inside, other=0.0)
    z = tl.load(points + 3 * offsets + 2, mask=inside, other=0.0)
    nearest = tl.full((BLOCK,), float("inf"), tl.float32)
    if SKIP_NEAR_ORIGIN:
        nearest = tl.where(x * x + y * y + z * z <= near_origin, -1.0, nearest)
    # Below all that can be picked, and below the -1 of points that are skipped.
    nearest = tl.where(inside, nearest, -2.0)
    last = tl.argmax(inside.to(tl.int32), axis=0)  # 0, of the type that the loop gives it
    tl.store(picked, 0)
    for step in range(1, NUM_SAMPLES):
        dx = x - tl.load(points + 3 * last)
        dy = y - tl.load(points + 3 * last + 1)
        dz = z - tl.load(points + 3 * last + 2)
        nearest = tl.minimum(nearest, dx * dx + dy * dy + dz * dz)
        last = tl.argmax(nearest, axis=0)
        tl.store(picked + step, last)


def sample_triton(points: Tensor, num_samples: int, near_origin: float | None = None) -> Tensor:
    """Sample with a single kernel, in which each cloud is one program.

    Args:
        points: Float32 coordinates, shape (B, N, 3), with N at most `MAX_POINTS`.
        num_samples: Number of points to pick.
        near_origin: Points with |p|^2 up to this are picked only when no other is left; `None`: no such rule.

    Returns:
        Indices, int64, shape (B, num_samples): the same as those of PyTorch's operations.
    """
    batch, num_points, _ = points.shape
    points = points.contiguous()
    picked = torch.empty((batch, num_samples), dtype=torch.int64, device=points.device)
    block = triton.next_power_of_2(num_points)
    # In float32 the largest number up to the limit stands for it; the limit itself would be rounded up.
    limit = np.float32(near_origin or 0.0)
    if near_origin is not None and float(limit) > near_origin:
        limit = np.nextafter(limit, np.float32(0.0))
    with torch.cuda.device_of(points):
        _pick_farthest[(batch,)](
            points,
            picked,
            num_points,
            float(limit),
            NUM_SAMPLES=num_samples,
            SKIP_NEAR_ORIGIN=near_origin is not None,
            BLOCK=block,
            num_warps=min(max(block // 512, 1), 16),
            # a * a + b rounded once instead of twice would pick other points than the CPU does.
            enable_fp_fusion=False,
        )
    return picked
