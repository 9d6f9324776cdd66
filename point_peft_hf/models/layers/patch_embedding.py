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

    Per point linear layers with BatchNorm - ReLU between, the maximum over the group put in front of every point's
    features, once more Linear - BatchNorm - ReLU - Linear, and the maximum over the group.

    Args:
        in_size: Features of a point (3 for coordinates).
        hidden_sizes: Widths of the layers before the first maximum (two as published, three in the larger PointGPT),
            and of the one after it.
        out_size: Width of a token.

    Shapes:
        - input: `(batch_size, num_groups, group_size, in_size)`
        - output: `(batch_size, num_groups, out_size)`
    """

    def __init__(self, in_size: int, hidden_sizes: tuple[int, ...], out_size: int):
        super().__init__()
        *first, second = hidden_sizes
        for number, (size_in, size) in enumerate(zip([in_size, *first], first, strict=False), start=1):
            self.add_module(f"first_linear{number}", nn.Linear(size_in, size))
            if number < len(first):
                self.add_module(f"first_norm{number}", FreezableBatchNorm1d(size))
        self.second_linear1 = nn.Linear(2 * first[-1], second)
        self.second_norm1 = FreezableBatchNorm1d(second)
        self.second_linear2 = nn.Linear(second, out_size)

    def forward(self, neighborhoods: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """Embed the groups, or embed them as the module was pre-trained to (`frozen`)."""
        batch_size, num_groups, group_size, in_size = neighborhoods.shape
        dtype = original(self.second_norm1).weight.dtype
        groups = neighborhoods.reshape(batch_size * num_groups, group_size, in_size).to(dtype)
        layers = {name: (original if frozen else current)(layer) for name, layer in self.named_children()}
        embed = _embed_folded if _can_fold(layers, frozen) else _embed_plain
        # Layer and norm alternate: the first part, and the three layers of the second.
        *first, second_linear1, second_norm1, second_linear2 = layers.values()
        return embed(groups, first, second_linear1, second_norm1, second_linear2, frozen).view(
            batch_size, num_groups, -1
        )


def _can_fold(layers: dict[str, nn.Module], frozen: bool) -> bool:
    """Whether weights and BatchNorms are fixed and at hand, and no adapter sits in between."""
    for name, layer in layers.items():
        is_norm = "norm" in name
        if type(layer) is not (FreezableBatchNorm1d if is_norm else nn.Linear) or layer.weight.is_meta:
            return False
        if is_norm and not (frozen or layer.uses_running_stats):
            return False
        # Where weights are trained, in the order of operations in which the published models are: the maximum of two
        # points that are as good as equal falls on the same one, and so does the gradient.
        if layer.weight.requires_grad and torch.is_grad_enabled():
            return False
    return True


def _embed_plain(
    groups: torch.Tensor,
    first: list[nn.Module],
    second_linear1: nn.Module,
    second_norm1: nn.Module,
    second_linear2: nn.Module,
    frozen: bool,
) -> torch.Tensor:
    """Embed groups of shape `(num_groups, group_size, in_size)` as `(num_groups, out_size)`, layer by layer."""
    num_groups, group_size, in_size = groups.shape
    options = {"frozen": True} if frozen else {}
    features = first[0](groups.reshape(-1, in_size))  # (num_groups * group_size, first)
    for norm, linear in zip(first[1::2], first[2::2], strict=True):
        features = linear(F.relu(norm(features, **options)))
    pooled = features.view(num_groups, group_size, -1).amax(dim=1)
    # Where a method trains the first half alone, the order of the published code is kept: the maximum of two points
    # that are as good as equal falls on the same one, and with it the gradient.
    is_linear = type(second_linear1) is nn.Linear and not second_linear1.weight.is_meta
    if is_linear and (second_linear1.weight.requires_grad or not any(p.requires_grad for p in first[0].parameters())):
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
    first: list[nn.Module],
    second_linear1: nn.Linear,
    second_norm1: FreezableBatchNorm1d,
    second_linear2: nn.Linear,
    frozen: bool,
) -> torch.Tensor:
    """The same function with fewer products.

    BatchNorms are folded in, the group's maximum is multiplied once a group, and the last layer before that maximum
    and the first one after it, which nothing else comes between, are one layer for the features of the points.
    """
    folded = []
    for linear, norm in zip(first[:-1:2], first[1::2], strict=True):
        scale, shift = norm.folded_scale_and_shift()
        folded.append((linear.weight * scale[:, None], linear.bias * scale + shift))
    scale2, shift2 = second_norm1.folded_scale_and_shift()
    weight_pooled, weight_point = (second_linear1.weight * scale2[:, None]).chunk(2, dim=1)
    bias2 = second_linear1.bias * scale2 + shift2
    weight2, first_bias2 = first[-1].weight, first[-1].bias
    weight_point, bias2 = weight_point @ weight2, bias2 + weight_point @ first_bias2

    def embed(chunk: torch.Tensor) -> torch.Tensor:
        num_groups, group_size, in_size = chunk.shape
        hidden = chunk.reshape(-1, in_size)
        for weight, bias in folded:
            hidden = F.linear(hidden, weight, bias).relu_()
        pooled = F.linear(hidden, weight2).view(num_groups, group_size, -1).amax(dim=1) + first_bias2
        features = F.linear(hidden, weight_point).view(num_groups, group_size, -1)
        features = features.add_(F.linear(pooled, weight_pooled, bias2)[:, None]).relu_()
        # The last bias is the same for all points of a group, so it can wait until after the maximum.
        features = F.linear(features.view(num_groups * group_size, -1), second_linear2.weight)
        return features.view(num_groups, group_size, -1).amax(dim=1) + second_linear2.bias

    if groups.is_cuda or torch.compiler.is_compiling() or len(groups) <= CHUNK_SIZE:
        return embed(groups)
    return torch.cat([embed(chunk) for chunk in groups.split(CHUNK_SIZE)])
