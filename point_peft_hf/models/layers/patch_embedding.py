"""Groups of points to tokens: the mini-PointNet of the point transformers."""

import torch
from torch import nn
from torch.nn import functional as F

from ...layers import FreezableBatchNorm1d

# Groups that are embedded at a time on a CPU: 64 groups of 32 points keep their activations in the cache of a core.
CHUNK_SIZE = 64


class PatchEmbedding(nn.Module):
    """Embed each group of points as one token, by a mini-PointNet (Point-BERT, arXiv 2111.14819, section 3.1).

    Per point Linear - BatchNorm - ReLU - Linear, the maximum over the group put in front of every point's features,
    once more Linear - BatchNorm - ReLU - Linear, and the maximum over the group.

    Args:
        in_size: Features of a point (3 for coordinates).
        hidden_sizes: Widths after the first, second and third linear layer.
        out_size: Width of a token.

    Shapes:
        - input: `(batch_size, num_groups, group_size, in_size)`
        - output: `(batch_size, num_groups, out_size)`
    """

    def __init__(self, in_size: int, hidden_sizes: tuple[int, int, int], out_size: int):
        super().__init__()
        first, second, third = hidden_sizes
        self.first_linear1 = nn.Linear(in_size, first)
        self.first_norm1 = FreezableBatchNorm1d(first)
        self.first_linear2 = nn.Linear(first, second)
        self.second_linear1 = nn.Linear(2 * second, third)
        self.second_norm1 = FreezableBatchNorm1d(third)
        self.second_linear2 = nn.Linear(third, out_size)

    def forward(self, neighborhoods: torch.Tensor) -> torch.Tensor:
        """Embed the groups."""
        batch_size, num_groups, group_size, in_size = neighborhoods.shape
        groups = neighborhoods.reshape(batch_size * num_groups, group_size, in_size).to(self.first_norm1.weight.dtype)
        embed = self._forward_folded if self._can_fold else self._forward_plain
        return embed(groups).view(batch_size, num_groups, -1)

    @property
    def _can_fold(self) -> bool:
        """Whether the BatchNorms are fixed, and no adapter sits in between."""
        linears = (self.first_linear1, self.first_linear2, self.second_linear1, self.second_linear2)
        return (
            self.first_norm1.uses_running_stats
            and self.second_norm1.uses_running_stats
            and all(type(linear) is nn.Linear for linear in linears)
        )

    def _forward_plain(self, groups: torch.Tensor) -> torch.Tensor:
        num_groups, group_size, in_size = groups.shape
        features = self.first_linear1(groups.view(-1, in_size))
        features = self.first_linear2(F.relu(self.first_norm1(features)))
        pooled = features.view(num_groups, group_size, -1).amax(dim=1)
        if type(self.second_linear1) is nn.Linear:
            # The same as below, but with the group's maximum multiplied once a group instead of once a point.
            weight_pooled, weight_point = self.second_linear1.weight.chunk(2, dim=1)
            features = F.linear(features, weight_point).view(num_groups, group_size, -1)
            features = (features + F.linear(pooled, weight_pooled, self.second_linear1.bias)[:, None]).flatten(0, 1)
        else:
            pooled = pooled[:, None].expand(-1, group_size, -1).reshape(num_groups * group_size, -1)
            features = self.second_linear1(torch.cat([pooled, features], dim=-1))
        features = self.second_linear2(F.relu(self.second_norm1(features)))
        return features.view(num_groups, group_size, -1).amax(dim=1)

    def _forward_folded(self, groups: torch.Tensor) -> torch.Tensor:
        """The same function with fewer products.

        BatchNorms are folded in, the group's maximum is multiplied once a group, and the second and the third linear
        layer, which nothing but that maximum comes between, are one layer for the features of the points.
        """
        scale1, shift1 = self.first_norm1.folded_scale_and_shift()
        scale2, shift2 = self.second_norm1.folded_scale_and_shift()
        weight1 = self.first_linear1.weight * scale1[:, None]
        bias1 = self.first_linear1.bias * scale1 + shift1
        weight_pooled, weight_point = (self.second_linear1.weight * scale2[:, None]).chunk(2, dim=1)
        bias2 = self.second_linear1.bias * scale2 + shift2
        weight2, first_bias2 = self.first_linear2.weight, self.first_linear2.bias
        weight_point, bias2 = weight_point @ weight2, bias2 + weight_point @ first_bias2

        def embed(chunk: torch.Tensor) -> torch.Tensor:
            num_groups, group_size, in_size = chunk.shape
            hidden = F.linear(chunk.reshape(-1, in_size), weight1, bias1).relu_()
            pooled = F.linear(hidden, weight2).view(num_groups, group_size, -1).amax(dim=1) + first_bias2
            features = F.linear(hidden, weight_point).view(num_groups, group_size, -1)
            features = features.add_(F.linear(pooled, weight_pooled, bias2)[:, None]).relu_()
            # The last bias is the same for all points of a group, so it can wait until after the maximum.
            features = F.linear(features.view(num_groups * group_size, -1), self.second_linear2.weight)
            return features.view(num_groups, group_size, -1).amax(dim=1) + self.second_linear2.bias

        if groups.is_cuda or torch.compiler.is_compiling() or len(groups) <= CHUNK_SIZE:
            return embed(groups)
        return torch.cat([embed(chunk) for chunk in groups.split(CHUNK_SIZE)])
