"""The transformer block of the point transformers, with its slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...layers import DropPath
from ...slots import BranchSlot, EntrySlot, OutputSlot, Stage
from ...tokens import Tokens
from .slotted import SlottedModule, has_hooks, is_constant, original


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    is_causal: bool = False,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, for `attn_implementation="eager"`: the one that also returns the attention weights."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class PointAttention(SlottedModule):
    """Multi-head self-attention.

    Args:
        config: Configuration with `qkv_bias`, `attention_dropout` and the attention implementation.
        stage: The stage of the block.
        num_heads: Number of attention heads.
        layer_index: Number of the block.

    Shapes:
        - input: `(batch_size, sequence_length, hidden_size)`
        - output: the same, and the attention weights `(batch_size, num_heads, sequence_length, sequence_length)` or
        `None`
    """

    def __init__(self, config, stage: Stage, num_heads: int, layer_index: int):
        super().__init__()
        size = stage.hidden_size
        self.config = config
        self.head_dim = size // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        for name in ("q_proj", "k_proj", "v_proj"):
            self.add_layer(name, nn.Linear(size, size, bias=config.qkv_bias), stage, layer_index)
        self.add_layer("out_proj", nn.Linear(size, size), stage, layer_index)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend among the tokens; `attention_mask` is added to the scores."""
        query = self.run_layer("q_proj", hidden_states)
        key = self.run_layer("k_proj", hidden_states)
        value = self.run_layer("v_proj", hidden_states)
        dropout = self.config.attention_dropout if self.training else 0.0
        output, weights = self._attend(query, key, value, attention_mask, is_causal, dropout)
        return self.run_layer("out_proj", output), weights

    def run_frozen(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, is_causal: bool
    ) -> torch.Tensor:
        """Attend as it was pre-trained to."""
        query = original(self.q_proj)(hidden_states)
        key = original(self.k_proj)(hidden_states)
        value = original(self.v_proj)(hidden_states)
        output, _ = self._attend(query, key, value, attention_mask, is_causal, 0.0)
        return original(self.out_proj)(output)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        is_causal: bool,
        dropout: float,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weigh values of shape `(batch_size, sequence_length, hidden_size)`, head by head; see `forward`."""
        if attention_mask is not None:
            attention_mask = attention_mask.to(query.dtype)
        heads = (*query.shape[:2], -1, self.head_dim)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            # (batch_size, num_heads, sequence_length, head_dim)
            query.view(heads).transpose(1, 2),
            key.view(heads).transpose(1, 2),
            value.view(heads).transpose(1, 2),
            attention_mask,
            scaling=self.scaling,
            dropout=dropout,
            is_causal=is_causal,
        )
        return output.reshape(query.shape), weights


class PointMLP(SlottedModule):
    """Feed-forward network: Linear - activation - Linear."""

    def __init__(self, config, stage: Stage, layer_index: int):
        super().__init__()
        size = stage.hidden_size
        intermediate_size = int(size * config.mlp_ratio)
        self.add_layer("fc1", nn.Linear(size, intermediate_size), stage, layer_index, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.add_layer("fc2", nn.Linear(intermediate_size, size), stage, layer_index)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map tokens of shape `(batch_size, sequence_length, hidden_size)` to the same shape."""
        inner = self.activation(self.run_layer("fc1", hidden_states))
        return self.run_layer("fc2", inner)

    def run_frozen(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map tokens as it was pre-trained to."""
        return original(self.fc2)(self.activation(original(self.fc1)(hidden_states)))


class TokenLayer(SlottedModule, GradientCheckpointingLayer):
    """A block that maps tokens to tokens; gradient checkpointing, of both kinds, sees all tensors of the tokens."""

    @property
    def _gradient_checkpointing_func(self) -> Callable:
        return self._checkpoint_tokens

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, function: Callable) -> None:
        self._checkpoint = function

    @property
    def checkpointing_is_reentrant(self) -> bool | None:
        """Whether the block is checkpointed with reentrant autograd; `None` if it is not checkpointed at all."""
        if not self.gradient_checkpointing:
            return None
        # transformers fixes the arguments with `functools.partial`; PyTorch's default is reentrant.
        return getattr(self._checkpoint, "keywords", {}).get("use_reentrant") is not False

    def _checkpoint_tokens(self, forward: Callable[[Tokens], Tokens], tokens: Tokens, *args) -> Tokens:
        tensors, rebuild = tokens.to_tensors()
        # What the block returns is only known when it has run.
        finish: list[Callable[[tuple], Tokens]] = []

        def run(*inputs):
            leaves, restore = forward(rebuild(inputs), *args).to_tensors()
            # What the block leaves as it is goes around it: as its output, the places of tokens would need a gradient.
            sources = [next((n for n, given in enumerate(inputs) if given is leaf), None) for leaf in leaves]

            def restore_all(outputs: tuple) -> Tokens:
                new = iter(outputs)
                return restore([next(new) if source is None else tensors[source] for source in sources])

            finish[:] = [restore_all]
            return tuple(leaf for leaf, source in zip(leaves, sources, strict=True) if source is None)

        outputs = self._checkpoint(run, *tensors)
        return finish[0](outputs)


class PointTransformerLayer(TokenLayer):
    """A pre-norm transformer block that adapters can be attached to.

    Args:
        config: Configuration of the backbone.
        stage: The stage of the block.
        num_heads: Number of attention heads.
        drop_path_rate: Rate with which each of the two residual branches is dropped in training.
        layer_index: Number of the block, counted from 0 over all stages.
    """

    # Whether the first residual starts after its norm, not before.
    starts_after_norm: ClassVar[bool] = False

    def __init__(self, config, stage: Stage, num_heads: int, drop_path_rate: float, layer_index: int):
        super().__init__()
        self.entry_slot = EntrySlot(stage, layer_index)
        self.add_layer("norm1", nn.LayerNorm(stage.hidden_size, eps=config.layer_norm_eps), stage, layer_index)
        self.attention = PointAttention(config, stage, num_heads, layer_index)
        self.attention_slot = BranchSlot(stage, layer_index, "attention")
        self.add_layer("norm2", nn.LayerNorm(stage.hidden_size, eps=config.layer_norm_eps), stage, layer_index)
        self.mlp = PointMLP(config, stage, layer_index)
        self.ffn_slot = BranchSlot(stage, layer_index, "ffn")
        self.drop_path = DropPath(drop_path_rate)
        self.output_slot = OutputSlot(stage, layer_index)

    def forward(self, tokens: Tokens, frozen: bool = False) -> Tokens:
        """Run the block.

        Args:
            tokens: The tokens, without their position embeddings.
            frozen: Whether to run it as it was pre-trained: without adapters, dropout and stochastic depth.

        Returns:
            The tokens; those that live for one block have left.
        """
        if frozen:
            return self._run_frozen(tokens)
        tokens = self.entry_slot(tokens)
        hidden_states = tokens.embedded()
        inputs = self.run_layer("norm1", hidden_states)
        hidden_states = inputs if self.starts_after_norm else hidden_states
        output, _ = self.attention(inputs, tokens.mask, tokens.is_causal)
        update, tokens = self.attention_slot(output, inputs, tokens.with_features(hidden_states), self.drop_path)
        hidden_states = hidden_states + update
        inputs = self.run_layer("norm2", hidden_states)
        update, tokens = self.ffn_slot(self.mlp(inputs), inputs, tokens.with_features(hidden_states), self.drop_path)
        return self.output_slot(tokens.with_features(hidden_states + update)).drop_passing()

    def is_constant(self, reads_first: bool) -> bool:
        """Whether the block computes the same from step to step.

        Args:
            reads_first: Whether adapters at its start may be there that only read the tokens.
        """
        children = [child for child in self.children() if child is not self.entry_slot]
        is_entered = is_constant(self.entry_slot) or (reads_first and getattr(self.entry_slot, "only_reads", False))
        return is_entered and is_constant(*children) and not has_hooks(self)

    def _run_frozen(self, tokens: Tokens) -> Tokens:
        hidden_states = tokens.embedded()
        inputs = original(self.norm1)(hidden_states)
        hidden_states = inputs if self.starts_after_norm else hidden_states
        hidden_states = hidden_states + self.attention.run_frozen(inputs, tokens.mask, tokens.is_causal)
        hidden_states = hidden_states + self.mlp.run_frozen(original(self.norm2)(hidden_states))
        return tokens.with_features(hidden_states)
