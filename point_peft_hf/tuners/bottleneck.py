"""Bottlenecks: that of the parts of Point-PEFT, and that of PPT and PointLoRA."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ..layers import add_product

_GELU_STD, _GELU_RANDOM_STD = 0.02, 0.3


class GELUBottleneck(nn.Module):
    """Linear down, GELU, linear up; no residual connection of its own.

    Args:
        in_size: Width of what goes in.
        inner_size: Width in between.
        out_size: Width of what comes out.
        init_weights: `True`: the way up is 0, so the output is. "published": small random weights. `False`: random.

    Shapes:
        - input: `(..., in_size)`
        - output: `(..., out_size)`
    """

    def __init__(self, in_size: int, inner_size: int, out_size: int, init_weights: bool | str = True):
        super().__init__()
        self.down_weight = nn.Parameter(torch.empty(inner_size, in_size))
        self.down_bias = nn.Parameter(torch.zeros(inner_size))
        self.up_weight = nn.Parameter(torch.zeros(out_size, inner_size))
        self.up_bias = nn.Parameter(torch.zeros(out_size))
        nn.init.trunc_normal_(self.down_weight, std=_GELU_STD)
        if init_weights is not True:
            std = _GELU_STD if init_weights == "published" else _GELU_RANDOM_STD
            nn.init.trunc_normal_(self.up_weight, std=std)

    def forward(self, features: torch.Tensor, part: int = 0, num_parts: int = 1) -> torch.Tensor:
        """Return what is to be added, in the dtype of the weights; only one of several equal parts, if asked for."""
        inner = F.gelu(F.linear(features.to(self.down_weight.dtype), self.down_weight, self.down_bias))
        weight, bias = (tensor.chunk(num_parts)[part] for tensor in (self.up_weight, self.up_bias))
        return F.linear(inner, weight, bias)


class Bottleneck(nn.Module):
    """Linear down, QuickGELU, dropout, linear up; no residual connection of its own.

    The weights are direct parameters, not layers: PEFT expects one name after the adapter's name in a state dict.

    Args:
        hidden_size: Width of the tokens.
        bottleneck_size: Width in between.
        dropout: Dropout rate in between.
        init_weights: `True`: the way up is 0, so the output is; otherwise random, as published.

    Shapes:
        - input: `(..., hidden_size)`
        - output: as the input
    """

    def __init__(self, hidden_size: int, bottleneck_size: int, dropout: float, init_weights: bool | str = True):
        super().__init__()
        self.down_weight = nn.Parameter(torch.empty(bottleneck_size, hidden_size))
        self.down_bias = nn.Parameter(torch.empty(bottleneck_size))
        self.up_weight = nn.Parameter(torch.empty(hidden_size, bottleneck_size))
        self.up_bias = nn.Parameter(torch.empty(hidden_size))
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.down_weight)
        nn.init.normal_(self.down_bias, std=1e-6)
        if init_weights is True:
            nn.init.zeros_(self.up_weight)
            nn.init.zeros_(self.up_bias)
        else:
            nn.init.xavier_uniform_(self.up_weight)
            nn.init.normal_(self.up_bias, std=1e-6)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what is to be added, in the dtype of the weights."""
        return F.linear(self._inner(hidden_states), self.up_weight, self.up_bias)

    def add_to(
        self, target: torch.Tensor, hidden_states: torch.Tensor | None = None, scale: float = 1.0
    ) -> torch.Tensor:
        """Return target + scale * bottleneck(hidden_states), in the dtype of `target`, with one pass over it.

        Args:
            target: Of shape `(batch_size, sequence_length, hidden_size)`.
            hidden_states: Of the same shape; default: `target`.
            scale: A factor.
        """
        inner = self._inner(target if hidden_states is None else hidden_states)
        # The bias as one more column of the weight: no pass of its own, neither forward nor backward.
        inner = F.pad(inner, (0, 1), value=1.0).flatten(0, -2)
        weight = torch.cat([self.up_weight, self.up_bias[:, None]], dim=1)
        return add_product(target.flatten(0, -2), inner, weight.t(), scale).view_as(target)

    def _inner(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = F.linear(hidden_states.to(self.down_weight.dtype), self.down_weight, self.down_bias)
        # QuickGELU, x * sigmoid(1.702 x), the approximation of GELU that the published method uses: as a SiLU it
        # keeps one tensor for the backward pass, not three.
        return self.dropout(F.silu(1.702 * hidden_states) / 1.702)
