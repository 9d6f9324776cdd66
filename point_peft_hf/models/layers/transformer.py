"""The transformer block of the point transformers, with its slots."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...layers import DropPath
from ...slots import BiasSlot, BlockContext, FeedForwardSlot, OutputSlot, PromptSlot, drop_prompts


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, for `attn_implementation="eager"`: the one that also returns the attention weights."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class PointAttention(nn.Module):
    """Multi-head self-attention.

    Args:
        config: Configuration with `qkv_bias`, `attention_dropout` and the attention implementation.
        hidden_size: Width of the tokens.
        num_heads: Number of attention heads.
        layer_index: Number of the block.
        num_layers: Number of blocks of the backbone.

    Shapes:
        - input: `(batch_size, sequence_length, hidden_size)`
        - output: the same, and the attention weights `(batch_size, num_heads, sequence_length, sequence_length)` or
        `None`
    """

    def __init__(self, config, hidden_size: int, num_heads: int, layer_index: int, num_layers: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj_bias_slot = BiasSlot(hidden_size, layer_index, num_layers)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend among the tokens; `attention_mask` is added to the scores."""
        batch_size, sequence_length, _ = hidden_states.shape
        heads = (batch_size, sequence_length, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)

        if attention_mask is not None:
            attention_mask = attention_mask.to(query.dtype)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
        output = self.out_proj(output.reshape(batch_size, sequence_length, -1))
        return self.out_proj_bias_slot(output), weights


class PointMLP(nn.Module):
    """Feed-forward network: Linear - activation - Linear.

    Args:
        config: Configuration with `mlp_ratio` and `hidden_act`.
        hidden_size: Width of the tokens.
        layer_index: Number of the block.
        num_layers: Number of blocks of the backbone.
    """

    def __init__(self, config, hidden_size: int, layer_index: int, num_layers: int):
        super().__init__()
        intermediate_size = int(hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc1_bias_slot = BiasSlot(intermediate_size, layer_index, num_layers)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.fc2_bias_slot = BiasSlot(hidden_size, layer_index, num_layers)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map tokens of shape `(batch_size, sequence_length, hidden_size)` to the same shape."""
        hidden_states = self.activation(self.fc1_bias_slot(self.fc1(hidden_states)))
        return self.fc2_bias_slot(self.fc2(hidden_states))


class PointTransformerLayer(GradientCheckpointingLayer):
    """A pre-norm transformer block that adapters can be attached to.

    Args:
        config: Configuration of the backbone.
        hidden_size: Width of the tokens.
        num_heads: Number of attention heads.
        drop_path_rate: Rate with which each of the two residual branches is dropped in training.
        layer_index: Number of the block, counted from 0 over all stages.
        num_layers: Number of blocks of the backbone.
        is_last_stage: Whether the features of the backbone come from the stage of this block.
    """

    def __init__(
        self,
        config,
        hidden_size: int,
        num_heads: int,
        drop_path_rate: float,
        layer_index: int,
        num_layers: int,
        is_last_stage: bool = True,
    ):
        super().__init__()
        place = (layer_index, num_layers)
        self.norm1 = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.norm1_bias_slot = BiasSlot(hidden_size, *place)
        self.attention = PointAttention(config, hidden_size, num_heads, *place)
        self.norm2 = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.norm2_bias_slot = BiasSlot(hidden_size, *place)
        self.mlp = PointMLP(config, hidden_size, *place)
        self.drop_path = DropPath(drop_path_rate)
        self.prompt_slot = PromptSlot(hidden_size, *place, is_last_stage)
        self.ffn_slot = FeedForwardSlot(hidden_size, *place)
        self.output_slot = OutputSlot(hidden_size, *place)

    def forward(
        self, hidden_states: torch.Tensor, context: BlockContext | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the block.

        Args:
            hidden_states: Tokens with their position embeddings added, of shape
                `(batch_size, num_prefix_tokens + num_groups, hidden_size)`.
            context: What adapters must know of the clouds, from [`~point_peft_hf.slots.prepare_context`].

        Returns:
            The tokens, of the same shape, and the attention weights (`None` unless the attention is "eager").
        """
        hidden_states, prompts = self.prompt_slot(hidden_states, context)
        attention_output, attention_weights = self.attention(
            self.norm1_bias_slot(self.norm1(hidden_states)), self._attention_mask(context, prompts.count)
        )
        hidden_states = hidden_states + self.drop_path(attention_output)
        ffn_output = self.drop_path(self.mlp(self.norm2_bias_slot(self.norm2(hidden_states))))
        hidden_states = hidden_states + self.ffn_slot(ffn_output, hidden_states, context)
        hidden_states = self.output_slot(hidden_states, context, prompts)
        return drop_prompts(hidden_states, context, prompts), attention_weights

    @staticmethod
    def _attention_mask(context: BlockContext | None, num_prompts: int) -> torch.Tensor | None:
        """The mask between patch tokens, extended by the tokens in front of them, which see and are seen by all."""
        if context is None or context.attention_mask is None:
            return None
        num_front = context.num_prefix_tokens + num_prompts
        return F.pad(context.attention_mask, (num_front, 0, num_front, 0))
