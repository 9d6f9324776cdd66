"""What makes the prompts of IDPT (arXiv 2304.07221)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ...layers import FreezableBatchNorm1d, recompute_in_backward
from ...ops.differences import pair_distances

_NEGATIVE_SLOPE = 0.2


class NormedLinear(FreezableBatchNorm1d):
    """Linear without bias - BatchNorm - LeakyReLU; `forward` is the BatchNorm alone."""

    def __init__(self, in_size: int, out_size: int):
        super().__init__(out_size)
        self.linear_weight = nn.Parameter(torch.empty(out_size, in_size))
        nn.init.kaiming_uniform_(self.linear_weight, a=5**0.5)

    def on_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map tokens of shape `(batch_size, num_tokens, in_size)` to `(batch_size, num_tokens, out_size)`."""
        rows = F.linear(tokens, self.linear_weight).flatten(0, 1)
        return F.leaky_relu(self(rows), _NEGATIVE_SLOPE).unflatten(0, tokens.shape[:2])

    def on_edges(self, tokens: torch.Tensor, num_neighbors: int) -> torch.Tensor:
        """Edge convolution (DGCNN, arXiv 1801.07829): the maximum over the edges to the nearest tokens.

        The edge from z to its neighbour y is [y - z, z], so the layer takes twice the width of the tokens.

        Args:
            tokens: Of shape `(batch_size, num_tokens, in_size / 2)`.
            num_neighbors: Number of edges of a token.

        Returns:
            Features of shape `(batch_size, num_tokens, out_size)`.
        """
        batch_size, num_tokens, _ = tokens.shape
        indices = nearest_tokens(tokens, num_neighbors)  # (B, G, K)
        first_rows = torch.arange(batch_size, device=tokens.device)[:, None, None] * num_tokens
        # The linear layer acts on single tokens, so it comes before the gather: each token once, not K times.
        of_difference, of_center = self.linear_weight.chunk(2, dim=1)
        neighbors = F.linear(tokens, of_difference).flatten(0, 1)
        centers = F.linear(tokens, of_center - of_difference).flatten(0, 1)
        # The edges take K times the memory of the tokens.
        pooled = recompute_in_backward(self._pool_edges, neighbors, centers, (first_rows + indices).flatten(0, 1))
        return pooled.unflatten(0, (batch_size, num_tokens))

    def _pool_edges(self, neighbors: torch.Tensor, centers: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        edges = F.embedding(rows, neighbors) + centers[:, None]  # (B * G, K, C)
        normed = self(edges.flatten(0, 1)).view_as(edges)
        return F.leaky_relu(normed, _NEGATIVE_SLOPE).amax(dim=1)


@torch.no_grad()
def nearest_tokens(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """The nearest tokens of each token in feature space, itself included.

    Args:
        tokens: Of shape `(batch_size, num_tokens, size)`.
        count: How many; all where there are fewer.

    Returns:
        Indices of shape `(batch_size, num_tokens, min(count, num_tokens))`.
    """
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    # From direct differences: the expansion as a matrix product cancels where tokens are alike.
    distances = pair_distances(tokens, tokens)
    return distances.topk(min(count, tokens.shape[1]), dim=-1, largest=False).indices
