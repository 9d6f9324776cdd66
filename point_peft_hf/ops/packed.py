"""Rows of many clouds one after the other: reordering them, and joining rows that belong together.

The gradients here are gathers, too. Autograd's own are sums into random places, which are slow on a CPU and differ
from run to run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(order, inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(grad, inverse, order), None, None


def reorder(rows: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Rows in another order.

    Args:
        rows: Of shape `(N, ...)`.
        order: A permutation of the numbers of the rows, of shape `(N,)`.
        inverse: Its inverse.
    """
    return _Reorder.apply(rows, order, inverse)


@dataclass(frozen=True)
class Clusters:
    """Which rows are joined to one.

    Attributes:
        parents: Number of the cluster of each row, of shape `(N,)`.
        members: Numbers of the rows, those of a cluster one after the other, of shape `(N,)`.
        starts: Where the members of each cluster begin, of shape `(M,)`.
    """

    parents: torch.Tensor
    members: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def from_keys(cls, keys: torch.Tensor) -> Clusters:
        """Join rows with the same key, of shape `(N,)`; clusters are in ascending order of their keys."""
        _, parents, counts = torch.unique(keys, return_inverse=True, return_counts=True)
        return cls(parents, parents.argsort(stable=True), counts.cumsum(0) - counts)

    @property
    def firsts(self) -> torch.Tensor:
        """Number of the first row of each cluster, of shape `(M,)`."""
        return self.members.index_select(0, self.starts)


def _cluster_sum(rows: torch.Tensor, clusters: Clusters, mode: str = "sum") -> torch.Tensor:
    return F.embedding_bag(clusters.members, rows.detach(), clusters.starts, mode=mode)


def cluster_mean(rows: torch.Tensor, clusters: Clusters) -> torch.Tensor:
    """Mean of the rows of each cluster, of shape `(M, C)`, without gradient.

    Args:
        rows: Of shape `(N, C)`.
        clusters: The clusters.
    """
    return _cluster_sum(rows, clusters, "mean")


class _ClusterMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor, clusters: Clusters) -> torch.Tensor:
        largest, _, _, places = torch.ops.aten._embedding_bag(rows, clusters.members, clusters.starts, mode=2)
        ctx.save_for_backward(places)
        ctx.num_rows = len(rows)
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        (places,) = ctx.saved_tensors
        # No two clusters have a row in common, so nothing is written twice.
        return grad.new_zeros(ctx.num_rows, grad.shape[1]).scatter_(0, places.long(), grad), None


def cluster_max(rows: torch.Tensor, clusters: Clusters) -> torch.Tensor:
    """Largest value of each channel among the rows of each cluster, of shape `(M, C)`.

    Args:
        rows: Of shape `(N, C)`.
        clusters: The clusters.
    """
    return _ClusterMax.apply(rows, clusters)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor, clusters: Clusters) -> torch.Tensor:
        ctx.clusters = clusters
        return rows.index_select(0, clusters.parents)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        return _cluster_sum(grad.contiguous(), ctx.clusters), None


def spread(rows: torch.Tensor, clusters: Clusters) -> torch.Tensor:
    """For each row the one of its cluster, of shape `(N, C)`.

    Args:
        rows: Rows of the clusters, of shape `(M, C)`.
        clusters: The clusters.
    """
    return _Spread.apply(rows, clusters)
