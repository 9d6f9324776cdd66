"""Farthest point sampling."""

import functools
import warnings
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from .differences import squared_differences
from .exporting import State, repeat
from .kernels import compiled_loops

_NEAR_ORIGIN = 1e-3
# Points handled together on the CPU: few enough for their working arrays (7 numbers a point) to stay in the cache and
# for PyTorch to use one thread (its grain size); thousands of short parallel sections would gain little on a quiet
# machine, and crawl on a busy one. Many enough that the cost of calling the operations does not matter.
_BLOCK_POINTS = 32768


@torch.no_grad()
def farthest_point_sample(points: Tensor, num_samples: int, *, skip_near_origin: bool = False) -> Tensor:
    """Pick points one by one, each the farthest from those already picked.

    Exact and deterministic: the first pick is index 0, ties go to the lowest index. The algorithm is that of
    "PointNet++", arXiv 1706.02413, section 3.2.

    Args:
        points: Coordinates, shape (B, N, 3), in the caller's unit. float16 and bfloat16 are computed in float32.
        num_samples: Number of points to pick from each cloud, 1 to N.
        skip_near_origin: Follow the rule of the CUDA op that published point-cloud models were trained with: points
            with |p|^2 <= 1e-3 are never picked, except index 0 as the start, or when no other point is left to choose
            from. Default False.

    Returns:
        Indices of the picked points in the order of picking, int64, shape (B, num_samples).

    Raises:
        ValueError: If `points` is not of shape (B, N, 3) or `num_samples` is not within 1 to N.
    """
    if points.dim() != 3 or points.shape[-1] != 3:
        raise ValueError(f"points must have shape (B, N, 3), got {tuple(points.shape)}.")
    if not 1 <= num_samples <= points.shape[1]:
        raise ValueError(
            f"num_samples must be within 1 and the {points.shape[1]} points of a cloud, got {num_samples}."
        )
    if points.dtype != torch.float64:
        points = points.float()
    if torch.compiler.is_exporting():
        sample = _sample_exported
    else:
        # A call through the operator takes as long as several picks from a small batch.
        sample = _opaque_sample if torch.compiler.is_compiling() else _sample
    return sample(points.detach(), num_samples, skip_near_origin)


def _sample(points: Tensor, num_samples: int, skip_near_origin: bool) -> Tensor:
    """Sample in the way that suits the device; arguments as `farthest_point_sample`."""
    if points.device.type == "cpu":
        return _sample_cpu(points, num_samples, skip_near_origin)
    kernel = _kernel() if points.is_cuda and points.dtype == torch.float32 else None
    if kernel is not None and points.shape[1] <= kernel.MAX_POINTS:
        return kernel.sample_triton(points, num_samples, _NEAR_ORIGIN if skip_near_origin else None)
    return _sample_torch(points, num_samples, skip_near_origin)


@functools.cache
def _kernel() -> ModuleType | None:
    """The module of the kernel for GPUs; `None` where Triton is not installed or cannot compile for this GPU."""
    try:
        from . import sampling_triton

        sampling_triton.sample_triton(torch.zeros(1, 2, 3, device="cuda"), 2)
    except ImportError:
        return None
    except Exception as error:
        # Whatever is wrong with a compiler that this package neither brings nor needs, PyTorch's operations work.
        warnings.warn(f"Farthest points are sampled without Triton, more slowly: {error!r}", stacklevel=2)
        return None
    return sampling_triton


# torch.compile keeps an operator as one opaque call, where it would unroll the loop otherwise.
_opaque_sample = torch.library.custom_op("point_peft_hf::farthest_point_sample", _sample, mutates_args=())


@_opaque_sample.register_fake
def _(points: Tensor, num_samples: int, skip_near_origin: bool) -> Tensor:
    return points.new_empty((points.shape[0], num_samples), dtype=torch.int64)


def _sample_exported(points: Tensor, num_samples: int, skip_near_origin: bool) -> Tensor:
    """Sample with plain operators that also ONNX has; arguments as `farthest_point_sample`."""
    planes = points.permute(2, 0, 1).contiguous()

    def squared_norm(vectors: Tensor) -> Tensor:
        # Added in the order of the other ways, which decides the last bit.
        x, y, z = vectors * vectors
        return x + y + z

    def pick(state: State) -> tuple[State, Tensor]:
        nearest, last = state
        centers = planes.gather(2, last.view(1, -1, 1).expand(3, -1, 1))
        nearest = torch.minimum(nearest, squared_norm(planes - centers))
        last = nearest.argmax(dim=1)
        return (nearest, last), last

    nearest = torch.full_like(planes[0], torch.inf)
    if skip_near_origin:
        is_near = squared_norm(planes).double() <= _NEAR_ORIGIN  # as in _sample_torch
        nearest = torch.where(is_near, -1.0, nearest)
    first = torch.zeros_like(nearest[:, 0], dtype=torch.int64)
    picked = [first[None]]
    if num_samples > 1:
        picked.append(repeat(pick, (nearest, first), num_samples - 1))
    return torch.cat(picked).t().contiguous()


def _sample_torch(points: Tensor, num_samples: int, skip_near_origin: bool) -> Tensor:
    """Sample with tensor operations, never waiting for the device; arguments as `farthest_point_sample`."""
    batch, num_points, _ = points.shape
    planes = points.permute(2, 0, 1).contiguous()
    squared = planes * planes
    nearest = torch.full((batch, num_points), torch.inf, dtype=points.dtype, device=points.device)
    if skip_near_origin:
        # -1 is below every squared distance, so the minimum keeps it and the maximum never takes it; where nothing
        # else is left, the first index wins, as in the CUDA op. Like there, the norm is compared in double precision.
        nearest.masked_fill_((squared[0] + squared[1] + squared[2]).double() <= _NEAR_ORIGIN, -1.0)
    picked = torch.zeros((num_samples, batch), dtype=torch.int64, device=points.device)
    for step in range(1, num_samples):
        last = picked[step - 1].view(1, batch, 1).expand(3, batch, 1)
        squared_differences(planes, planes.gather(2, last), out=squared)
        distance = squared[0].add_(squared[1]).add_(squared[2])
        torch.minimum(nearest, distance, out=nearest)
        picked[step] = nearest.argmax(dim=1)
    return picked.t().contiguous()


def _sample_cpu(points: Tensor, num_samples: int, skip_near_origin: bool) -> Tensor:
    """Sample on the CPU, a few clouds at a time; arguments as `farthest_point_sample`."""
    batch, num_points, _ = points.shape
    loops = compiled_loops(f"{__package__}.sampling_numba") if points.dtype == torch.float32 else None
    if loops is not None:
        return loops.sample_numba(points, num_samples, _NEAR_ORIGIN if skip_near_origin else None)
    picked = torch.zeros((num_samples, batch), dtype=torch.int64)
    blocks = max(1, -(-batch * num_points // _BLOCK_POINTS))
    for part, target in zip(points.chunk(blocks), picked.chunk(blocks, dim=1), strict=True):
        _sample_block(part, target.numpy(), skip_near_origin)
    return picked.t().contiguous()


def _sample_block(points: Tensor, picked: np.ndarray, skip_near_origin: bool) -> None:
    """Fill `picked` (num_samples, b), which holds zeros, for clouds (b, N, 3) whose arrays fit the cache.

    The squared differences are taken by PyTorch, in one pass; the rest by NumPy, whose calls cost less and whose
    argmax is many times faster on the CPU. Both work in place on the same memory.
    """
    batch, num_points, _ = points.shape
    planes = points.permute(2, 0, 1).contiguous()
    rows = points.reshape(-1, 3).numpy()
    squared = planes * planes
    x, y, z = squared.numpy()
    nearest = np.full((batch, num_points), np.inf, dtype=x.dtype)
    if skip_near_origin:
        nearest[(x + y + z).astype(np.float64) <= _NEAR_ORIGIN] = -1.0  # as in _sample_torch
    offsets, last = np.arange(batch) * num_points, np.empty(batch, dtype=np.int64)
    centers = torch.empty((batch, 3), dtype=points.dtype)
    centers_numpy, center_planes = centers.numpy(), centers.t().unsqueeze(-1)
    for before, now in zip(picked, picked[1:], strict=False):
        np.add(offsets, before, out=last)
        rows.take(last, axis=0, out=centers_numpy, mode="clip")  # "raise" would buffer the output
        squared_differences(planes, center_planes, out=squared)
        np.add(x, y, out=x)
        np.add(x, z, out=x)
        np.minimum(nearest, x, out=nearest)
        nearest.argmax(axis=1, out=now)
