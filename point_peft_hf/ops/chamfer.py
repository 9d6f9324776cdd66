"""Chamfer distance."""

import torch

from .grouping import gather_points


def chamfer_distance(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Chamfer distance with squared Euclidean distances (the "L2" variant that Point-MAE trains with).

    For each point the squared distance to its nearest neighbour in the other cloud, averaged over the points, in both
    directions, and summed.

    Args:
        predicted: Clouds of shape `(batch_size, num_predicted, 3)`.
        target: Clouds of shape `(batch_size, num_target, 3)`.

    Returns:
        One distance a cloud, of shape `(batch_size,)`, in the squared unit of the clouds. Differentiable in both.

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
    forward = (predicted - gather_points(target, to_target)).square().sum(-1).mean(-1)
    backward = (target - gather_points(predicted, to_predicted)).square().sum(-1).mean(-1)
    return forward + backward
