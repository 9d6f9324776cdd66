"""Eigenvectors of graphs of points: what PointGST filters tokens in (arXiv 2410.08114)."""

from __future__ import annotations

import torch

# Added to the sums of the adjacency's rows, as in the published code.
_DEGREE_EPS = 1e-6
# Entries that are so close to the largest one of an eigenvector count as the largest.
_SIGN_MARGIN = 1e-4


def graph_basis(points: torch.Tensor) -> torch.Tensor:
    """Eigenvectors of the Laplacian of a graph of points, each set of points on its own.

    Points are connected with the weight `smallest distance / distance`, equal points with 1. Distances are direct
    differences, everything is computed in float64. The sign of an eigenvector is such that its largest entry (the
    first one of those that are as large but for rounding) is positive. Where eigenvalues are equal, any basis of their
    space is right.

    Args:
        points: Coordinates, of shape `(..., num_points, 3)`.

    Returns:
        The eigenvectors in columns, by ascending eigenvalue, of shape `(..., num_points, num_points)`, in the dtype of
        `points`.
    """
    exact = points.double()
    distances = (exact.unsqueeze(-2) - exact.unsqueeze(-3)).norm(dim=-1)
    smallest = distances.masked_fill(distances == 0, torch.inf).amin(dim=(-2, -1), keepdim=True)
    # Between equal points, and with itself: infinity or, if all points are equal, not a number.
    adjacency = torch.where(distances > 0, smallest / distances, 1.0)
    _, vectors = torch.linalg.eigh(_laplacian(adjacency))
    sizes = vectors.abs()
    is_largest = sizes >= (1 - _SIGN_MARGIN) * sizes.amax(dim=-2, keepdim=True)
    leading = vectors.gather(-2, is_largest.to(torch.uint8).argmax(dim=-2, keepdim=True))
    return (vectors * leading.sign()).to(points.dtype)


def published_graph_basis(points: torch.Tensor) -> torch.Tensor:
    """The same as the published code computes it.

    The unit of length is the smallest distance above 0 of all sets, so the result depends on the batch. For more than
    25 points distances come from expanded squares, whose rounding can be that smallest distance: results on other
    hardware differ.

    Args:
        points: Coordinates, of shape `(num_sets, num_points, 3)`.

    Returns:
        The eigenvectors in columns, of shape `(num_sets, num_points, num_points)`.
    """
    distances = torch.cdist(points, points)
    distances = distances / distances[distances > 0].min()
    eye = torch.eye(points.shape[-2], dtype=points.dtype, device=points.device)
    adjacency = 1 / (distances + eye)
    if not torch.compiler.is_compiling() and not adjacency.isfinite().all():
        raise ValueError(
            '`basis`="published" cannot take a cloud with equal centres: it has fewer different points than groups. '
            'Leave such clouds out, or use `basis`="cloud".'
        )
    return torch.linalg.eigh(_laplacian(adjacency))[1]


def _laplacian(adjacency: torch.Tensor) -> torch.Tensor:
    scale = (adjacency.sum(dim=-1) + _DEGREE_EPS).rsqrt()
    eye = torch.eye(adjacency.shape[-1], dtype=adjacency.dtype, device=adjacency.device)
    return eye - scale.unsqueeze(-1) * adjacency * scale.unsqueeze(-2)
