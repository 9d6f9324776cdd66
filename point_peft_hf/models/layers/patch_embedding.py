"""Groups of points to tokens: the mini-PointNet of the point transformers."""

import torch
from torch import nn
from torch.nn import functional as F

from ...layers import FreezableBatchNorm1d
from .slotted import current, original

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

    def forward(self, neighborhoods: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """Embed the groups, or embed them as the module was pre-trained to (`frozen`)."""
        batch_size, num_groups, group_size, in_size = neighborhoods.shape
        norm1 = original(self.first_norm1)
        groups = neighborhoods.reshape(batch_size * num_groups, group_size, in_size).to(norm1.weight.dtype)
        layers = {name: (original if frozen else current)(layer) for name, layer in self.named_children()}
        embed = _embed_folded if _can_fold(layers, frozen) else _embed_plain
        return embed(groups, frozen=frozen, **layers).view(batch_size, num_groups, -1)


def _can_fold(layers: dict[str, nn.Module], frozen: bool) -> bool:
    """Whether the BatchNorms are fixed, no adapter sits in between, and the weights are at hand."""
    for name, layer in layers.items():
        is_norm = "norm" in name
        if type(layer) is not (FreezableBatchNorm1d if is_norm else nn.Linear) or layer.weight.is_meta:
            return False
        if is_norm and not (frozen or layer.uses_running_stats):
            return False
    return True


def _embed_plain(
    groups: torch.Tensor,
    first_linear1: nn.Module,
    first_norm1: nn.Module,
    first_linear2: nn.Module,
    second_linear1: nn.Module,
    second_norm1: nn.Module,
    second_linear2: nn.Module,
    frozen: bool,
) -> torch.Tensor:
    """Embed groups of shape `(num_groups, group_size, in_size)` as `(num_groups, out_size)`, layer by layer."""
    num_groups, group_size, in_size = groups.shape
    options = {"frozen": True} if frozen else {}
    features = first_linear1(groups.reshape(-1, in_size))  # (num_groups * group_size, first)
    features = first_linear2(F.relu(first_norm1(features, **options)))
    pooled = features.view(num_groups, group_size, -1).amax(dim=1)
    if type(second_linear1) is nn.Linear and not second_linear1.weight.is_meta:
        # The same as below, but with the group's maximum multiplied once a group instead of once a point.
        weight_pooled, weight_point = second_linear1.weight.chunk(2, dim=1)
        features = F.linear(features, weight_point).view(num_groups, group_size, -1)
        features = (features + F.linear(pooled, weight_pooled, second_linear1.bias)[:, None]).flatten(0, 1)
    else:
        pooled = pooled[:, None].expand(-1, group_size, -1).reshape(num_groups * group_size, -1)
        features = second_linear1(torch.cat([pooled, features], dim=-1))
    features = second_linear2(F.relu(second_norm1(features, **options)))
    return features.view(num_groups, group_size, -1).amax(dim=1)


def _embed_folded(
    groups: torch.Tensor,
    first_linear1: nn.Linear,
    first_norm1: FreezableBatchNorm1d,
    first_linear2: nn.Linear,
    second_linear1: nn.Linear,
    second_norm1: FreezableBatchNorm1d,
    second_linear2: nn.Linear,
    frozen: bool,
) -> torch.Tensor:
    """The same function with fewer products.

    BatchNorms are folded in, the group's maximum is multiplied once a group, and the second and the third linear
    layer, which nothing but that maximum comes between, are one layer for the features of the points.
    """
    scale1, shift1 = first_norm1.folded_scale_and_shift()
    scale2, shift2 = second_norm1.folded_scale_and_shift()
    weight1 = first_linear1.weight * scale1[:, None]
    bias1 = first_linear1.bias * scale1 + shift1
    weight_pooled, weight_point = (second_linear1.weight * scale2[:, None]).chunk(2, dim=1)
    bias2 = second_linear1.bias * scale2 + shift2
    weight2, first_bias2 = first_linear2.weight, first_linear2.bias
    weight_point, bias2 = weight_point @ weight2, bias2 + weight_point @ first_bias2

    def embed(chunk: torch.Tensor) -> torch.Tensor:
        num_groups, group_size, in_size = chunk.shape
        hidden = F.linear(chunk.reshape(-1, in_size), weight1, bias1).relu_()
        pooled = F.linear(hidden, weight2).view(num_groups, group_size, -1).amax(dim=1) + first_bias2
        features = F.linear(hidden, weight_point).view(num_groups, group_size, -1)
        features = features.add_(F.linear(pooled, weight_pooled, bias2)[:, None]).relu_()
        # The last bias is the same for all points of a group, so it can wait until after the maximum.
        features = F.linear(features.view(num_groups * group_size, -1), second_linear2.weight)
        return features.view(num_groups, group_size, -1).amax(dim=1) + second_linear2.bias

    if groups.is_cuda or torch.compiler.is_compiling() or len(groups) <= CHUNK_SIZE:
        return embed(groups)
    return torch.cat([embed(chunk) for chunk in groups.split(CHUNK_SIZE)])
