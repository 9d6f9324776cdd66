"""Checks of point clouds, with messages that say what is wrong and how to put it right."""

import torch
from torch import Tensor


def validate_points(points: Tensor, *, minimum: int = 1, name: str = "points", reason: str = "") -> None:
    """Check that a tensor is a usable batch of point clouds.

    Args:
        points: What should be a floating-point tensor of shape (B, N, 3) with finite coordinates, in the caller's
            unit of length.
        minimum: Smallest number of points each cloud must have. Default 1.
        name: What to call the tensor in messages. Default "points".
        reason: Why `minimum` points are needed, for the message, such as "group_size=32". Default: none given.

    Raises:
        ValueError: If `points` is not a tensor, not of a floating-point type, not of shape (B, N, 3), empty, has fewer
            than `minimum` points a cloud, or holds NaN or infinite values. The last check reads values, so it waits
            for the GPU; it is left out while `torch.compile` traces.
    """
    if not isinstance(points, Tensor):
        raise ValueError(
            f"{name} must be a torch.Tensor of shape (B, N, 3), got {type(points).__name__}; "
            f"convert it first: torch.as_tensor({name}, dtype=torch.float32)."
        )
    if not points.is_floating_point():
        raise ValueError(f"{name} must be of a floating-point dtype, got {points.dtype}; convert it: {name}.float().")
    _validate_shape(points, minimum, name, reason)
    # Reading values would break the graph, so a traced forward pass trusts its input.
    if not torch.compiler.is_compiling() and points.device.type != "meta":
        _validate_finite(points, name)


def _validate_shape(points: Tensor, minimum: int, name: str, reason: str) -> None:
    """Check shape (B, N, 3), B >= 1, N >= minimum; arguments and errors as in `validate_points`."""
    shape = tuple(points.shape)
    if points.dim() != 3:
        hint = ""
        if points.dim() == 2 and shape[-1] >= 3:
            hint = f" For a single cloud add a batch dimension: {name}[None]."
        elif points.dim() == 4:
            hint = f" Merge the leading dimensions: {name}.flatten(0, 1)."
        raise ValueError(f"{name} must have shape (B, N, 3), got {points.dim()} dimension(s): {shape}.{hint}")
    if shape[-1] != 3:
        hint = ""
        if shape[1] == 3:
            hint = f" Coordinates must come last: {name}.transpose(1, 2)."
        elif shape[-1] > 3:
            hint = f" Columns beyond x, y, z (colours, normals) are not coordinates: take {name}[..., :3]."
        raise ValueError(f"{name} must have shape (B, N, 3), got a last dimension of {shape[-1]}: {shape}.{hint}")
    if shape[0] == 0:
        raise ValueError(f"{name} is an empty batch, shape {shape}; give at least one cloud.")
    if shape[1] == 0:
        raise ValueError(f"{name} holds clouds without points, shape {shape}; remove empty clouds from the batch.")
    if shape[1] < minimum:
        because = f" ({reason})" if reason else ""
        raise ValueError(
            f"{name} has {shape[1]} points a cloud, but at least {minimum} are needed{because}; "
            "give denser clouds, or configure fewer or smaller groups."
        )


def _validate_finite(points: Tensor, name: str) -> None:
    """Raise ValueError if any coordinate is NaN or infinite, saying how many points of which clouds."""
    # A sum is NaN or infinite if a term is, and far cheaper than isfinite().all(); as a sum of finite terms can
    # overflow too, it only decides whether to look closer.
    if bool(torch.isfinite(points.detach().sum(dtype=torch.promote_types(points.dtype, torch.float32)))):
        return
    bad_points = (~torch.isfinite(points.detach()).all(dim=-1)).sum(dim=1)
    bad_clouds = bad_points.nonzero().flatten().tolist()
    if not bad_clouds:
        return
    counts = bad_points.tolist()
    listed = ", ".join(f"{counts[b]} of {points.shape[1]} points of cloud {b}" for b in bad_clouds[:5])
    more = f" and {len(bad_clouds) - 5} more clouds" if len(bad_clouds) > 5 else ""
    raise ValueError(f"{name} holds NaN or infinite coordinates: {listed}{more}; remove or replace these points.")
