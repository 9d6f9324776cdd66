"""Chamfer distance."""

import torch

from .grouping import gather_points


def chamfer_distance(predicted: torch.Tensor, target: torch.Tensor, *, squared: bool = True) -> torch.Tensor:
    """Chamfer distance: how far the points of two clouds are from their nearest neighbours in the other cloud.

    Squared Euclidean distances (the "L2" variant that Point-MAE trains with) are averaged over the points in each
    direction, and summed over the directions; the "L1" variant averages distances that are not squared, and takes the
    mean of both directions.

    Args:
        predicted: Clouds of shape `(batch_size, num_predicted, 3)`.
        target: Clouds of shape `(batch_size, num_target, 3)`.
        squared: Whether distances are squared.

    Returns:
        One distance a cloud, of shape `(batch_size,)`, in the (squared) unit of the clouds. Differentiable in both,
        with a gradient of 0 where points coincide.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if predicted.ndim != 3 or target.ndim != 3 or predicted.shape[0] != target.shape[0] or predicted.shape[2] != 3:
        raise ValueError(
            "`predicted` and `target` must have shapes (batch_size, num_points, 3) with the same batch_size, got "
            f"{tuple(predicted.shape)} and {tuple(target.shape)}."
        )
    # Only who is whose neighbour comes from the expanded square (fast, a little inexact); the distances themselves,
    # and so the gradients, come from the differences.
    with torch.no_grad():
        squared_norms = (predicted**2).sum(-1)[:, :, None] + (target**2).sum(-1)[:, None]
        squared_distances = torch.baddbmm(squared_norms, predicted, target.transpose(1, 2), alpha=-2)
        to_target, to_predicted = squared_distances.argmin(dim=2), squared_distances.argmin(dim=1)
    forward = (predicted - gather_points(target, to_target)).square().sum(-1)
    backward = (target - gather_points(predicted, to_predicted)).square().sum(-1)
    if squared:
        return forward.mean(-1) + backward.mean(-1)
    return (_root(forward).mean(-1) + _root(backward).mean(-1)) / 2


def _root(values: torch.Tensor) -> torch.Tensor:
    # The derivative of a root is infinite at 0.
    apart = values > 0
    return torch.where(apart, torch.where(apart, values, 1.0).sqrt(), 0.0)
