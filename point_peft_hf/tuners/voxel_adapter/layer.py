"""The layer of the voxel adapter."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ...ops import submanifold_conv
from ...slots import VoxelFFNSlot
from ...voxels import VoxelStage
from ..slot_layer import SlotLayer, bottleneck_size
from .config import VoxelAdapterConfig

_KERNEL = 3


class VoxelBottleneck(nn.Module):
    """Linear down, SiLU, h + depth-wise convolution of h, dropout, linear up.

    Args:
        hidden_size: Width of the voxels' features.
        inner_size: Width in between.
        use_neighbors: Whether there is the convolution.
        dropout: Dropout rate in between.
        init_weights: `True`: the way up and the convolution are 0; otherwise random.
    """

    def __init__(self, hidden_size: int, inner_size: int, use_neighbors: bool, dropout: float, init_weights=True):
        super().__init__()
        self.down_weight = nn.Parameter(torch.empty(inner_size, hidden_size))
        self.down_bias = nn.Parameter(torch.zeros(inner_size))
        self.up_weight = nn.Parameter(torch.zeros(hidden_size, inner_size))
        self.up_bias = nn.Parameter(torch.zeros(hidden_size))
        kernel = torch.zeros(_KERNEL, _KERNEL, _KERNEL, inner_size)
        self.register_parameter("kernel", nn.Parameter(kernel) if use_neighbors else None)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.down_weight)
        if init_weights is not True:
            nn.init.xavier_uniform_(self.up_weight)
            nn.init.normal_(self.up_bias, std=0.1)
            if use_neighbors:
                nn.init.normal_(self.kernel, std=0.1)

    def forward(self, rows: torch.Tensor, voxels: VoxelStage) -> torch.Tensor:
        """What is to be added to rows of shape `(N, hidden_size)`."""
        inner = F.silu(F.linear(rows.to(self.down_weight.dtype), self.down_weight, self.down_bias))
        if self.kernel is not None:
            inner = inner + submanifold_conv(inner, self.kernel, None, voxels.neighbors(_KERNEL)).to(inner.dtype)
        return F.linear(self.dropout(inner), self.up_weight, self.up_bias)


class VoxelAdapterLayer(SlotLayer):
    """Parallel to a feed-forward network, on its input after the norm."""

    slot_class = VoxelFFNSlot
    parts = ("bottleneck",)

    def create_parts(self, adapter_name: str, config: VoxelAdapterConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the bottleneck."""
        size = bottleneck_size(config, slot_name, config.bottleneck_size)
        bottleneck = VoxelBottleneck(
            self.slot.hidden_size, size, config.use_neighbors, config.dropout, config.init_weights
        )
        return {"bottleneck": bottleneck}

    def adapt(self, name: str, output: torch.Tensor, inputs: torch.Tensor, voxels: VoxelStage) -> torch.Tensor:
        """Add what the bottleneck makes of the input, of shape `(N, hidden_size)`."""
        added = self.part("bottleneck", name)(inputs, voxels)
        return output + self.configs[name].scale * added.to(output.dtype)
