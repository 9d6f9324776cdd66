"""The layers of PointGPT: what differs from those that the other point transformers share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...layers import DropPath, FreezableBatchNorm1d
from ...ops import chamfer_distance
from ..layers.transformer import eager_attention_forward
from .configuration_point_gpt import PointGPTConfig


class PointGPTPatchEmbedding(nn.Module):
    """Embed each group of points as one token: the mini-PointNet of Point-BERT with any number of layers per point.

    Linear layers with BatchNorm - ReLU between them, the maximum over the group in front of every point's features,
    once more Linear - BatchNorm - ReLU - Linear, and the maximum over the group.

    Args:
        hidden_sizes: Widths of the layers before the first maximum, and of the one after it.
        out_size: Width of a token.

    Shapes:
        - input: `(batch_size, num_groups, group_size, 3)`
        - output: `(batch_size, num_groups, out_size)`
    """

    def __init__(self, hidden_sizes: tuple[int, ...], out_size: int):
        super().__init__()
        *first, second = hidden_sizes
        for index, (in_size, size) in enumerate(zip([3, *first], first, strict=False), start=1):
            self.add_module(f"first_linear{index}", nn.Linear(in_size, size))
            if index < len(first):
                self.add_module(f"first_norm{index}", FreezableBatchNorm1d(size))
        self.num_first_layers = len(first)
        self.second_linear1 = nn.Linear(2 * first[-1], second)
        self.second_norm1 = FreezableBatchNorm1d(second)
        self.second_linear2 = nn.Linear(second, out_size)

    def forward(self, neighborhoods: torch.Tensor) -> torch.Tensor:
        """Embed the groups."""
        batch_size, num_groups, group_size, _ = neighborhoods.shape
        features = neighborhoods.reshape(-1, 3).to(self.second_norm1.weight.dtype)  # (all points, 3)
        for index in range(1, self.num_first_layers + 1):
            features = self.get_submodule(f"first_linear{index}")(features)
            if index < self.num_first_layers:
                features = F.relu(self.get_submodule(f"first_norm{index}")(features))
        features = features.view(batch_size * num_groups, group_size, -1)
        pooled = features.amax(dim=1, keepdim=True).expand_as(features)
        features = self.second_linear1(torch.cat([pooled, features], dim=-1).flatten(0, 1))
        features = self.second_linear2(F.relu(self.second_norm1(features)))
        return features.view(batch_size, num_groups, group_size, -1).amax(dim=2)


class PointGPTPositionEmbedding(nn.Module):
    """Sine and cosine of the coordinates, without parameters.

    Each axis has a third of the channels, an even number, in which sine and cosine alternate; the rest are 0. All
    frequencies are equal, as in the released models (their temperature is 1), so the embedding has a period of 1.

    Args:
        hidden_size: Width of a token.

    Shapes:
        - input: `(batch_size, num_groups, 3)`, in the unit of the cloud
        - output: `(batch_size, num_groups, hidden_size)`
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.num_pairs = hidden_size // 3 // 2
        self.num_zeros = hidden_size - 3 * 2 * self.num_pairs

    def forward(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Embed the coordinates, in their own dtype."""
        angles = 2 * torch.pi * coordinates.unsqueeze(-1)  # (B, G, 3, 1)
        pairs = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (B, G, 3, 2)
        return F.pad(pairs.repeat(1, 1, 1, self.num_pairs).flatten(2), (0, self.num_zeros))


class PointGPTAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        config: Configuration.
        num_heads: Number of attention heads.

    Shapes:
        - input and output: `(batch_size, sequence_length, hidden_size)`
    """

    def __init__(self, config: PointGPTConfig, num_heads: int):
        super().__init__()
        size = config.hidden_size
        self.config = config
        self.head_dim = size // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False  # What is seen is said by the mask.
        self.q_proj = nn.Linear(size, size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(size, size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(size, size, bias=config.qkv_bias)
        self.out_proj = nn.Linear(size, size)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Attend among the tokens; `attention_mask` is added to the scores."""
        batch_size, sequence_length, _ = hidden_states.shape
        query, key, value = (
            projection(hidden_states).view(batch_size, sequence_length, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        mask = attention_mask.to(query.dtype)
        output, _ = attend(self, query, key, value, mask, scaling=self.scaling, dropout=dropout)
        return self.out_proj(output.reshape(batch_size, sequence_length, -1))


class PointGPTMLP(nn.Module):
    """Feed-forward network: Linear - activation - Linear.

    Args:
        config: Configuration.
    """

    def __init__(self, config: PointGPTConfig):
        super().__init__()
        intermediate_size = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map tokens of shape `(batch_size, sequence_length, hidden_size)` to the same shape."""
        return self.fc2(self.activation(self.fc1(hidden_states)))


class PointGPTLayer(GradientCheckpointingLayer):
    """A block whose first residual starts behind its norm.

    Args:
        config: Configuration.
        num_heads: Number of attention heads.
        drop_path_rate: Rate with which each of the two residual branches is dropped in training.
    """

    def __init__(self, config: PointGPTConfig, num_heads: int, drop_path_rate: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = PointGPTAttention(config, num_heads)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = PointGPTMLP(config)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Run the block on tokens with their position embeddings, `(batch_size, sequence_length, hidden_size)`."""
        hidden_states = self.norm1(hidden_states)
        hidden_states = hidden_states + self.drop_path(self.attention(hidden_states, attention_mask))
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states)))


class PointGPTBlocks(nn.Module):
    """Blocks in a row, each fed with the tokens plus their position embeddings.

    Args:
        config: Configuration.
        num_layers: Number of blocks.
        num_heads: Attention heads of a block.
        drop_path_rate: Stochastic depth of the last block.
    """

    def __init__(self, config: PointGPTConfig, num_layers: int, num_heads: int, drop_path_rate: float = 0.0):
        super().__init__()
        self.layers = nn.ModuleList(
            PointGPTLayer(config, num_heads, drop_path_rate * index / max(num_layers - 1, 1))
            for index in range(num_layers)
        )

    def forward(
        self, hidden_states: torch.Tensor, positions: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return the tokens that entered the first block, and those that left each block."""
        all_hidden_states = [hidden_states]
        for layer in self.layers:
            all_hidden_states.append(layer(all_hidden_states[-1] + positions, attention_mask))
        return tuple(all_hidden_states)


class PointGPTGenerator(nn.Module):
    """Predict the points of each group from the tokens of the groups in front of it.

    Args:
        config: Configuration.

    Shapes:
        - states: tokens after the final norm of the encoder, `(batch_size, num_groups, hidden_size)`; of which the
          first is the start token, and number i the group i - 1
        - group_centers: `(batch_size, num_groups, 3)`
        - attention_mask: `(1, 1, num_groups, num_groups)`
        - output: `(batch_size, num_groups, group_size, 3)`
    """

    def __init__(self, config: PointGPTConfig):
        super().__init__()
        num_heads = config.generator_num_attention_heads or config.num_attention_heads
        self.position_embedding = PointGPTPositionEmbedding(config.hidden_size)
        self.blocks = PointGPTBlocks(config, config.generator_num_hidden_layers, num_heads)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.reconstruction_head = nn.Linear(config.hidden_size, 3 * config.group_size)

    def forward(self, states: torch.Tensor, group_centers: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the predicted points, in float32 at least."""
        # Where to go from the group before. Groups may share a centre, and then there is no direction.
        steps = group_centers.diff(dim=1)
        places = torch.cat([group_centers[:, :1], F.normalize(steps, dim=-1, eps=1e-30)], dim=1)
        positions = self.position_embedding(places).to(states.dtype)
        hidden_states = self.layernorm(self.blocks(states, positions, attention_mask)[-1])
        predicted = self.reconstruction_head(hidden_states).unflatten(2, (-1, 3))
        return predicted if predicted.dtype == torch.float64 else predicted.float()


def generation_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Chamfer distance of groups, with distances and with their squares (CD-L1 + CD-L2).

    Args:
        predicted: Predicted points of shape `(batch_size, num_groups, group_size, 3)`.
        target: The points, of the same shape.

    Returns:
        The mean over all groups, a scalar.
    """
    predicted, target = predicted.flatten(0, 1), target.flatten(0, 1)
    return (chamfer_distance(predicted, target) + chamfer_distance(predicted, target, squared=False)).mean()


def causal_mask(length: int, device: torch.device, hidden: torch.Tensor | None = None) -> torch.Tensor:
    """Additive mask with which a token sees itself and those in front of it.

    Args:
        length: Length of the sequence.
        device: Where to make it.
        hidden: Tokens that none but themselves see, a bool tensor of shape `(length,)`.

    Returns:
        0 where a token (row) sees another (column) and minus infinity elsewhere, of shape `(1, 1, length, length)`.
    """
    blocked = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    if hidden is not None:
        blocked = blocked | (hidden & ~torch.eye(length, dtype=torch.bool, device=device))
    return torch.zeros(length, length, device=device).masked_fill(blocked, -torch.inf)[None, None]
