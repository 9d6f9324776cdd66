"""The layers of PointGPT: what differs from those that the other point transformers share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ...ops import chamfer_distance
from ...slots import Backbone, Stage
from ...tokens import Cloud, start_tokens
from ..layers import PointTransformerEncoder, PointTransformerLayer
from .configuration_point_gpt import PointGPTConfig


class PointGPTPositionEmbedding(nn.Module):
    """Sine and cosine of the coordinates, without parameters.

    Each axis has a third of the channels, an even number, in which sine and cosine alternate; the rest are 0. All
    frequencies are equal, as in the released models (their temperature is 1), so the embedding has a period of 1.

    Shapes:
        - input: `(batch_size, num_groups, 3)`, in the unit of the cloud
        - output: `(batch_size, num_groups, hidden_size)`
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.num_pairs = hidden_size // 3 // 2
        self.num_zeros = hidden_size - 3 * 2 * self.num_pairs

    def forward(self, coordinates: torch.Tensor, frozen: bool = False) -> torch.Tensor:
        """Embed the coordinates, in their own dtype; there is nothing to freeze."""
        angles = 2 * torch.pi * coordinates.unsqueeze(-1)  # (B, G, 3, 1)
        pairs = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (B, G, 3, 2)
        return F.pad(pairs.repeat(1, 1, 1, self.num_pairs).flatten(2), (0, self.num_zeros))


class PointGPTLayer(PointTransformerLayer):
    """A block whose first residual starts after its norm."""

    starts_after_norm = True


class PointGPTBlocks(PointTransformerEncoder):
    """The blocks of an encoder or of a generator."""

    layer_class = PointGPTLayer


class PointGPTGenerator(nn.Module):
    """Predict the points of each group from the tokens of the groups in front of it.

    Shapes:
        - states: tokens after the final norm of the encoder, `(batch_size, num_groups, hidden_size)`; of which the
          first is the start token, and number i the group i - 1
        - group_centers: `(batch_size, num_groups, 3)`
        - attention_mask: `(1, 1, num_groups, num_groups)`, or `None`: a token sees itself and those in front of it
        - output: `(batch_size, num_groups, group_size, 3)`
    """

    def __init__(self, config: PointGPTConfig):
        super().__init__()
        num_heads = config.generator_num_attention_heads or config.num_attention_heads
        depth = config.generator_num_hidden_layers
        self.position_embedding = PointGPTPositionEmbedding(config.hidden_size)
        stage = Stage(config.hidden_size, config.group_size, depth, is_encoder=False)
        self.blocks = PointGPTBlocks(config, stage, num_heads, drop_path_rate=0.0)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.reconstruction_head = nn.Linear(config.hidden_size, 3 * config.group_size)

    def forward(
        self, states: torch.Tensor, group_centers: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the predicted points, in float32 at least."""
        # Where to go from the group before. Groups may share a centre, and then there is no direction.
        steps = group_centers.diff(dim=1)
        places = torch.cat([group_centers[:, :1], F.normalize(steps, dim=-1, eps=1e-30)], dim=1)
        positions = self.position_embedding(places).to(states.dtype)
        cloud = Cloud(group_centers, group_centers)
        is_causal = attention_mask is None
        tokens = start_tokens(states, group_centers, cloud, positions, mask=attention_mask, is_causal=is_causal)
        tokens, _ = self.blocks(tokens, Backbone(self))
        predicted = self.reconstruction_head(self.layernorm(tokens.features)).unflatten(2, (-1, 3))
        return predicted if predicted.dtype == torch.float64 else predicted.float()


def generation_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Chamfer distance of groups, with distances and with their squares (CD-L1 + CD-L2).

    Args:
        predicted: Predicted points of shape `(batch_size, num_groups, group_size, 3)`.
        target: The points, of the same shape.
    """
    predicted, target = predicted.flatten(0, 1), target.flatten(0, 1)
    return (chamfer_distance(predicted, target) + chamfer_distance(predicted, target, squared=False)).mean()


def causal_mask(hidden: torch.Tensor) -> torch.Tensor:
    """Additive mask with which a token sees itself and those in front of it that are not hidden.

    Args:
        hidden: Tokens that none but themselves see, a bool tensor of shape `(length,)`.

    Returns:
        0 where a token (row) sees another (column) and minus infinity elsewhere, of shape `(1, 1, length, length)`.
    """
    length, device = len(hidden), hidden.device
    blocked = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    blocked = blocked | (hidden & ~torch.eye(length, dtype=torch.bool, device=device))
    return torch.zeros(length, length, device=device).masked_fill(blocked, -torch.inf)[None, None]
