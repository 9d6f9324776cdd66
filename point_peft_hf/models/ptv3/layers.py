"""Layers of the Point Transformer V3 family: blocks, stem, pooling, unpooling."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from ...layers import DropPath, FreezableBatchNorm1d, recompute_in_backward
from ...ops import Clusters, NeighborTable, cluster_max, spread, submanifold_conv
from ...slots import Stage, VoxelFFNSlot
from ...voxels import VoxelStage
from ..layers import PointMLP, SlottedModule, original
from .attention import PatchAttention

# As published, with and without a bias: the neighbourhoods of the position encoding and of the stem.
POSITION_KERNEL, STEM_KERNEL = 3, 5
_BATCH_NORM = {"eps": 1e-3, "momentum": 0.01}


class SubmanifoldConv(nn.Module):
    """A convolution over occupied voxels; see [`~point_peft_hf.ops.submanifold_conv`]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*3 * [kernel_size], in_channels, out_channels))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self, std: float = 0.02) -> None:
        """Start as published: small normal weights, no bias."""
        nn.init.trunc_normal_(self.weight, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, rows: torch.Tensor, neighbors: NeighborTable) -> torch.Tensor:
        """Convolve rows of shape `(N, in_channels)` to `(N, out_channels)`."""
        return submanifold_conv(rows, self.weight, self.bias, neighbors)


class LayerScale(nn.Module):
    """A factor for each channel."""

    def __init__(self, size: int, initial: float):
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.full((size,), float(initial)))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Scale rows of shape `(N, size)`."""
        return rows * self.gamma


class VoxelMLP(PointMLP):
    """The feed-forward network, with dropout in between."""

    def __init__(self, config, stage: Stage, layer_index: int):
        super().__init__(config, stage, layer_index)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map rows of shape `(N, hidden_size)`."""
        weights = [original(layer).weight for layer in (self.fc1, self.fc2)]
        if self.training and not any(weight.requires_grad for weight in weights):
            # What is wide is not kept where adapters train: that is half of what a block would keep.
            return recompute_in_backward(self._run, rows)
        return self._run(rows)

    def _run(self, rows: torch.Tensor) -> torch.Tensor:
        inner = self.dropout(self.activation(self.run_layer("fc1", rows)))
        return self.run_layer("fc2", inner)


class PointTransformerV3Layer(SlottedModule, GradientCheckpointingLayer):
    """A block: position encoding by convolution, attention within patches, feed-forward network."""

    def __init__(self, config, stage: Stage, num_heads: int, layer_index: int, drop_path_rate: float):
        super().__init__()
        hidden_size, eps = stage.hidden_size, config.layer_norm_eps
        self.position_conv = SubmanifoldConv(hidden_size, hidden_size, POSITION_KERNEL)
        self.add_layer("position_linear", nn.Linear(hidden_size, hidden_size), stage, layer_index)
        for name in ("position_norm", "norm1", "norm2"):
            self.add_layer(name, nn.LayerNorm(hidden_size, eps=eps), stage, layer_index)
        self.attention = PatchAttention(config, stage, num_heads, layer_index)
        self.mlp = VoxelMLP(config, stage, layer_index)
        self.ffn_slot = VoxelFFNSlot(stage, layer_index)
        has_scales = config.layer_scale is not None
        self.scale1 = LayerScale(hidden_size, config.layer_scale) if has_scales else nn.Identity()
        self.scale2 = LayerScale(hidden_size, config.layer_scale) if has_scales else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.drop_path = DropPath(drop_path_rate)
        self.keeps_update = config.legacy_position_features
        # Of the curves of the stage, which this block reads its voxels along.
        self.order = (layer_index - stage.first_layer) % len(config.orders)

    def forward(
        self,
        rows: torch.Tensor,
        position_rows: torch.Tensor | None,
        voxels: VoxelStage,
        rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the block.

        Args:
            rows: Features of shape `(N, hidden_size)`.
            position_rows: What the position encoding reads, of the same shape; `None` for `rows`.
            voxels: The stage.
            rotation: Of the coordinates, where attention knows them.

        Returns:
            The features, and what the position encoding of the next block reads, `None` for the same.
        """
        convolved = self.position_conv(rows if position_rows is None else position_rows, voxels.neighbors())
        encoded = self.run_layer("position_linear", convolved)
        rows = rows + self.run_layer("position_norm", encoded)
        inputs = self.run_layer("norm1", rows)
        attended = self.attention(inputs, voxels, voxels.orders[self.order], rotation)
        rows = rows + self.drop_path(self.scale1(self.dropout(attended)))
        inputs = self.run_layer("norm2", rows)
        update = self.ffn_slot(self.dropout(self.mlp(inputs)), inputs, voxels)
        update = self.drop_path(self.scale2(update))
        return rows + update, update if self.keeps_update else None


def build_norm(config, size: int) -> nn.Module:
    """The norm of stem, pooling and decoder."""
    if config.norm == "batch":
        return FreezableBatchNorm1d(size, **_BATCH_NORM)
    return nn.LayerNorm(size, eps=config.layer_norm_eps)


class Stem(nn.Module):
    """Features of the input -> features of the first stage."""

    def __init__(self, config):
        super().__init__()
        sizes = config.in_channels, config.hidden_sizes[0]
        self.is_sparse = config.stem == "sparse"
        self.linear = None if self.is_sparse else nn.Linear(*sizes)
        self.conv = SubmanifoldConv(*sizes, STEM_KERNEL, bias=False) if self.is_sparse else None
        self.norm = build_norm(config, sizes[1])

    def forward(self, features: torch.Tensor, voxels: VoxelStage) -> torch.Tensor:
        """Map features of shape `(N, in_channels)` to `(N, hidden_size)`."""
        if self.is_sparse:
            # Its table serves no other layer.
            table = NeighborTable.build(voxels.grid, voxels.batch_index, STEM_KERNEL)
            return F.gelu(self.norm(self.conv(features, table)))
        return F.gelu(self.norm(self.linear(features)))


class Pooling(nn.Module):
    """Features of voxels -> those of the voxels that they are joined to."""

    def __init__(self, config, in_size: int, out_size: int):
        super().__init__()
        self.linear = nn.Linear(in_size, out_size)
        self.norm = build_norm(config, out_size)

    def forward(self, rows: torch.Tensor, clusters: Clusters) -> torch.Tensor:
        """Pool rows of shape `(N, in_size)` to `(M, out_size)`."""
        return F.gelu(self.norm(cluster_max(self.linear(rows), clusters)))


class Unpooling(nn.Module):
    """Features of a stage and of the one after it -> those of a stage of the decoder."""

    def __init__(self, config, in_size: int, skip_size: int, out_size: int):
        super().__init__()
        self.linear = nn.Linear(in_size, out_size)
        self.norm = build_norm(config, out_size)
        self.skip_linear = nn.Linear(skip_size, out_size)
        self.skip_norm = build_norm(config, out_size)

    def forward(
        self, rows: torch.Tensor, skipped: torch.Tensor, clusters: Clusters
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Join the stages.

        Args:
            rows: Of the coarser stage, of shape `(M, in_size)`.
            skipped: Of the encoder, of shape `(N, skip_size)`.
            clusters: Which voxels were joined.

        Returns:
            The sum, and the part of it that comes from the encoder, of shape `(N, out_size)`.
        """
        skipped = F.gelu(self.skip_norm(self.skip_linear(skipped)))
        return skipped + spread(F.gelu(self.norm(self.linear(rows))), clusters), skipped
