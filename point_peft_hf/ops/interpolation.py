"""Weights that spread features from a few points to others."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .exporting import is_exporting_for_onnx
from .grouping import gather_points
from .neighbors import knn_indices


def inverse_distance_weights(
    targets: Tensor,
    sources: Tensor,
    *,
    num_neighbors: int | None = None,
    power: float = 2.0,
    eps: float = 1e-8,
) -> Tensor:
    """Weigh sources by their inverse distance from each target; `torch.bmm(weights, features)` then interpolates.

    The interpolation of PointNet++ (arXiv 1706.02413, eq. 2), w proportional to 1 / (d^power + eps), which Point-PEFT
    (arXiv 2310.03059) uses over all sources. Differentiable with respect to both sets of coordinates, with finite
    gradients also where a target coincides with a source.

    Args:
        targets: Where features are wanted, shape (B, G, 3).
        sources: Where features are known, shape (B, S, 3), in the same unit.
        num_neighbors: Weigh only this many nearest sources, 1 to S; the others get 0. Default: all.
        power: Exponent of the distance, above 0. Default 2.
        eps: Added to d^power, so in unit^power, above 0. Default 1e-8.

    Returns:
        Weights, shape (B, G, S), each row summing to 1; float32, or float64 if an input is float64.

    Raises:
        ValueError: If the shapes do not fit together or an option is out of its range.
    """
    if targets.dim() != 3 or sources.dim() != 3 or targets.shape[-1] != 3 or sources.shape[-1] != 3:
        raise ValueError(
            f"targets and sources must have shapes (B, G, 3) and (B, S, 3), got {tuple(targets.shape)} and "
            f"{tuple(sources.shape)}."
        )
    if targets.shape[0] != sources.shape[0]:
        raise ValueError(f"targets and sources differ in batch size: {targets.shape[0]} and {sources.shape[0]}.")
    num_sources = sources.shape[1]
    if num_neighbors is not None and not 1 <= num_neighbors <= num_sources:
        raise ValueError(f"num_neighbors must be within 1 and the {num_sources} sources, got {num_neighbors}.")
    if not power > 0 or not eps > 0:
        raise ValueError(f"power and eps must be above 0, got power={power} and eps={eps}.")
    dtype = torch.promote_types(torch.promote_types(targets.dtype, sources.dtype), torch.float32)
    # Direct differences: the expansion |t|^2 + |s|^2 - 2 t.s can come out below zero where it should be tiny.
    squared = (targets.to(dtype).unsqueeze(2) - sources.to(dtype).unsqueeze(1)).square().sum(dim=-1)
    if num_neighbors is None or num_neighbors == num_sources:
        return _normalized_inverse(squared, power, eps)
    nearest, indices = squared.topk(num_neighbors, dim=-1, largest=False)
    weights = _normalized_inverse(nearest, power, eps)
    return torch.zeros_like(squared).scatter(-1, indices, weights)


def interpolate_features(
    targets: Tensor, sources: Tensor, features: Tensor, num_neighbors: int = 3, eps: float = 1e-8
) -> Tensor:
    """Spread features from the nearest sources to each target, by inverse squared distance (arXiv 1706.02413, eq. 2).

    The same as `torch.bmm(inverse_distance_weights(targets, sources, num_neighbors=...), features)`, without a matrix
    of all targets by all sources. Differentiable with respect to `features` only. It is linear in them, so a linear
    layer that makes them narrower belongs in front of it.

    Args:
        targets: Where features are wanted, shape (B, N, 3).
        sources: Where features are known, shape (B, G, 3), in the same unit.
        features: The features, shape (B, G, C).
        num_neighbors: Sources that each target takes features from; all of them if there are fewer. Default 3.
        eps: Added to the squared distance, so in unit^2. Default 1e-8.

    Returns:
        Features of the targets, shape (B, N, C), of the dtype of `features`.

    Raises:
        ValueError: If the shapes do not fit together or `num_neighbors` is below 1.
    """
    if features.dim() != 3 or features.shape[:2] != sources.shape[:2]:
        raise ValueError(
            f"features must have shape (B, G, C) with (B, G) as in sources, {tuple(sources.shape[:2])}, got "
            f"{tuple(features.shape)}."
        )
    targets, sources = targets.detach(), sources.detach()
    indices = knn_indices(targets, sources, min(num_neighbors, sources.shape[1]))
    dtype = torch.promote_types(targets.dtype, torch.float32)
    offsets = gather_points(sources.to(dtype), indices) - targets.to(dtype).unsqueeze(2)
    weights = _normalized_inverse(offsets.square().sum(dim=-1), power=2.0, eps=eps).to(features.dtype)
    batch, num_sources, channels = features.shape
    if is_exporting_for_onnx():  # where a sum over bags is a loop
        return (gather_points(features, indices) * weights.unsqueeze(-1)).sum(dim=2)
    rows = indices + torch.arange(batch, device=indices.device).view(-1, 1, 1) * num_sources
    # One pass over the rows; a gather and a sum would write and read every neighbour's features once more.
    spread = F.embedding_bag(
        rows.flatten(0, 1),
        features.reshape(batch * num_sources, channels),
        per_sample_weights=weights.flatten(0, 1),
        mode="sum",
    )
    return spread.view(batch, -1, channels)


def _normalized_inverse(squared: Tensor, power: float, eps: float) -> Tensor:
    """Return 1 / (squared^(power/2) + eps), normalised along the last dimension."""
    if power == 2.0:
        distance = squared
    else:
        # The derivative of a root is infinite at 0; a coinciding pair gets the gradient 0 instead.
        apart = squared > 0
        distance = torch.where(apart, torch.where(apart, squared, 1.0).pow(power / 2), 0.0)
    distance = distance + eps
    # The factor cancels, but keeps every weight within 0 and 1 where 1 / eps and its square could overflow.
    weights = distance.detach().amin(dim=-1, keepdim=True) / distance
    return weights / weights.sum(dim=-1, keepdim=True)
