"""Nested groups: each stage groups the centres of the stage before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...ops import farthest_point_sample, gather_points, knn_indices
from ...ops.differences import pair_distances

# Added to the attention scores of pairs that must not see each other.
BLOCKED = -1e5


@dataclass
class PointHierarchy:
    """The groups of all stages.

    Attributes:
        neighborhoods: Points of the first stage's groups relative to their centre, of shape
            `(batch_size, num_groups[0], group_sizes[0], 3)`, in the unit of the cloud.
        centers: For each stage the centres, of shape `(batch_size, num_groups[i], 3)`.
        neighbor_indices: For each stage what a group consists of, of shape `(batch_size, num_groups[i],
            group_sizes[i])`: indices of points in the first stage, of tokens of the stage before in the others.
    """

    neighborhoods: torch.Tensor
    centers: list[torch.Tensor]
    neighbor_indices: list[torch.Tensor]

    @classmethod
    def of(
        cls, points: torch.Tensor, centers: list[torch.Tensor], neighbor_indices: list[torch.Tensor]
    ) -> PointHierarchy:
        """The groups of points of shape `(batch_size, num_points, 3)`."""
        neighborhoods = gather_points(points, neighbor_indices[0]) - centers[0][:, :, None]
        return cls(neighborhoods, centers, neighbor_indices)


def group_nested(
    points: torch.Tensor, num_groups: Sequence[int], group_sizes: Sequence[int], *, skip_near_origin: bool = False
) -> PointHierarchy:
    """Group clouds, then the centres of these groups, and so on (Point-M2AE, arXiv 2205.14401, section 3.1).

    Args:
        points: Clouds of shape `(batch_size, num_points, 3)`.
        num_groups: Number of groups of each stage, not growing.
        group_sizes: Size of a group in each stage.
        skip_near_origin: As in [`~point_peft_hf.ops.farthest_point_sample`].
    """
    sources, centers, neighbor_indices = points, [], []
    for count, size in zip(num_groups, group_sizes, strict=True):
        chosen = farthest_point_sample(sources, count, skip_near_origin=skip_near_origin)
        centers.append(gather_points(sources, chosen))
        neighbor_indices.append(knn_indices(centers[-1], sources, size))
        sources = centers[-1]
    return PointHierarchy.of(points, centers, neighbor_indices)


def radius_mask(centers: torch.Tensor, radius: float, dtype: torch.dtype) -> torch.Tensor | None:
    """Additive attention mask that blocks pairs of tokens whose centres are at least `radius` apart.

    Args:
        centers: Centres of the tokens, of shape `(batch_size, num_groups, 3)`.
        radius: In the unit of the cloud; 0 for no limit.
        dtype: Dtype of the mask.

    Returns:
        A mask of shape `(batch_size, 1, num_groups, num_groups)`, or `None` if there is no limit.
    """
    if radius == 0:
        return None
    # Direct differences: the expanded square is inexact exactly where pairs are close to the limit.
    return blocked_scores(pair_distances(centers, centers) >= radius, dtype)


def blocked_scores(blocked: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask of a boolean one.

    Args:
        blocked: `True` where a token must not see another, of shape `(batch_size, num_tokens, num_tokens)`.
        dtype: Dtype of the mask.

    Returns:
        A mask of shape `(batch_size, 1, num_tokens, num_tokens)`.
    """
    # float16 does not reach -1e5; half of its range leaves room for the scores.
    value = max(BLOCKED, torch.finfo(dtype).min / 2)
    return torch.zeros(blocked.shape, dtype=dtype, device=blocked.device).masked_fill_(blocked, value)[:, None]
