"""Tokens to part scores of every point."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ...layers import FreezableBatchNorm1d, TaskModule
from ...ops import interpolate_features


class _NormedActivation(nn.Module):
    """BatchNorm - ReLU on features of shape `(batch_size, length, size)`."""

    def __init__(self, size: int):
        super().__init__()
        self.norm = FreezableBatchNorm1d(size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(features.flatten(0, 1))).view_as(features)


class TokenFusion(nn.Module):
    """Side by side what several depths say of the same tokens, and reduce it: Linear - BatchNorm - ReLU.

    Args:
        in_sizes: Width of the tokens of each depth.
        out_size: Width of what comes out; 0 leaves out the reduction.

    Shapes:
        - input: for each depth `(batch_size, num_groups, in_sizes[i])`; the centres, not used
        - output: `(batch_size, num_groups, out_size)`
    """

    def __init__(self, in_sizes: Sequence[int], out_size: int):
        super().__init__()
        self.out_size = out_size or sum(in_sizes)
        self.linear = nn.Linear(sum(in_sizes), out_size, bias=False) if out_size else None
        self.activation = _NormedActivation(out_size) if out_size else None

    def forward(self, hidden_states: Sequence[torch.Tensor], centers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Fuse the tokens."""
        tokens = torch.cat(tuple(hidden_states), dim=-1)
        return tokens if self.linear is None else self.activation(self.linear(tokens))


class TokenPyramid(nn.Module):
    """From the coarsest stage to the finest: propagate to the centres of the stage before, add what that one says.

    Args:
        in_sizes: Width of the tokens of each stage, from the finest to the coarsest.
        out_size: Width of what comes out; 0 for that of the coarsest stage.
        layer_norm_eps: Epsilon of the layer norms. The backbone itself has none after the finer stages.

    Shapes:
        - input: for each stage `(batch_size, num_groups[i], in_sizes[i])`, and its centres
          `(batch_size, num_groups[i], 3)`
        - output: `(batch_size, num_groups[0], out_size)`
    """

    def __init__(self, in_sizes: Sequence[int], out_size: int, layer_norm_eps: float):
        super().__init__()
        self.out_size = out_size or in_sizes[-1]
        self.layernorms = nn.ModuleList(nn.LayerNorm(size, eps=layer_norm_eps) for size in in_sizes[:-1])
        self.linears = nn.ModuleList(nn.Linear(size, self.out_size, bias=False) for size in in_sizes)
        self.activations = nn.ModuleList(_NormedActivation(self.out_size) for _ in in_sizes)

    def forward(self, hidden_states: Sequence[torch.Tensor], centers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Fuse the tokens of the stages."""
        tokens = self.activations[-1](self.linears[-1](hidden_states[-1]))
        for stage in range(len(centers) - 2, -1, -1):
            own = self.linears[stage](self.layernorms[stage](hidden_states[stage]))
            tokens = self.activations[stage](own + interpolate_features(centers[stage], centers[stage + 1], tokens))
        return tokens


class SegmentationHead(TaskModule):
    """Part scores of points from tokens, in the order of Point-MAE's part segmentation (arXiv 2203.06604).

    Features are propagated from the three nearest tokens to each point (PointNet++, arXiv 1706.02413), joined with the
    coordinates of the point, and pass layers of `propagation_sizes`; then, joined with maximum and mean over the
    tokens and with the category of the object, layers of `hidden_sizes`. Each is Linear - BatchNorm - ReLU. What is
    linear is done before features are propagated, or once a cloud, where that is cheaper and comes to the same.

    Args:
        fusion: Makes one set of tokens of those of several depths; a [`TokenFusion`] or [`TokenPyramid`].
        propagation_sizes: Widths of the layers on propagated features.
        hidden_sizes: Widths of the layers after them.
        num_labels: Number of parts.
        num_categories: Number of categories; 0 if the head does not know the category.
        dropout: Dropout rate after the first of the layers of `hidden_sizes`.
        in_size: Number of features of the whole cloud; default: maximum and mean over the tokens.

    Shapes:
        - hidden_states, centers: what `fusion` takes
        - points: `(batch_size, num_points, 3)`, in the unit of the cloud
        - category_ids: `(batch_size,)`, or `None` where the category is not known
        - output: `(batch_size, num_points, num_labels)`
    """

    def __init__(
        self,
        fusion: TokenFusion | TokenPyramid,
        propagation_sizes: Sequence[int],
        hidden_sizes: Sequence[int],
        num_labels: int,
        num_categories: int,
        dropout: float,
        in_size: int | None = None,
    ):
        super().__init__()
        in_size = self.global_size(fusion) if in_size is None else in_size
        self.fusion = fusion
        self.num_categories = num_categories
        self.token_linear = nn.Linear(fusion.out_size, propagation_sizes[0], bias=False)
        self.point_linear = nn.Linear(3, propagation_sizes[0], bias=False)
        self.cloud_linear = nn.Linear(in_size + num_categories, hidden_sizes[0], bias=False)
        sizes = (*propagation_sizes, *hidden_sizes)
        self.linears = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in zip(sizes, sizes[1:], strict=False))
        self.activations = nn.ModuleList(_NormedActivation(size) for size in sizes)
        self.num_propagation_layers = len(propagation_sizes)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(sizes[-1], num_labels)

    def forward(
        self,
        hidden_states: Sequence[torch.Tensor],
        centers: Sequence[torch.Tensor],
        points: torch.Tensor,
        category_ids: torch.Tensor | None = None,
        read_out: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return the part scores (logits); `read_out` may change what the head knows of the whole cloud."""
        tokens = self.fusion(hidden_states, centers)
        features = interpolate_features(points, centers[0], self.token_linear(tokens))
        features = self.activations[0](features + self.point_linear(points.to(features.dtype)))
        for index, linear in enumerate(self.linears, start=1):
            features = linear(features)
            if index == self.num_propagation_layers:
                features = features + self._describe_cloud(tokens, category_ids, read_out)[:, None]
            features = self.activations[index](features)
            if index == self.num_propagation_layers:
                features = self.dropout(features)
        return self.output(features)

    @staticmethod
    def global_size(fusion: TokenFusion | TokenPyramid) -> int:
        """Number of features that maximum and mean over the tokens are."""
        return 2 * fusion.out_size

    def _describe_cloud(
        self, tokens: torch.Tensor, category_ids: torch.Tensor | None, read_out: Callable | None
    ) -> torch.Tensor:
        """What the first hidden layer knows of the whole cloud, of shape `(batch_size, hidden_sizes[0])`."""
        pooled = torch.cat([tokens.amax(dim=1), tokens.mean(dim=1)], dim=-1)
        if read_out is not None:
            pooled = read_out(pooled)
        if self.num_categories:
            category = pooled.new_zeros(pooled.shape[0], self.num_categories)
            if category_ids is not None:
                category = F.one_hot(category_ids, self.num_categories).to(pooled.dtype)
            pooled = torch.cat([pooled, category], dim=-1)
        return self.cloud_linear(pooled)
