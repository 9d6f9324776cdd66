"""A stack of blocks that adapters can be attached to."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from ...slots import BlockContext, LocalitySlot, PriorSlot, pool_tokens, prepare_context
from .transformer import PointTransformerLayer


class PointTransformerEncoder(nn.Module):
    """Blocks in a row, each fed with the tokens plus their position embeddings.

    Args:
        config: Configuration of the backbone.
        hidden_size: Width of the tokens.
        num_heads: Attention heads of a block.
        num_layers: Number of blocks here.
        group_size: Points of a group.
        first_layer_index: Number of the first block, counted over all stages of the backbone.
        total_num_layers: Number of blocks of the backbone; default: `num_layers`.
        is_first_stage: Whether there is no stage before.
        is_last_stage: Whether the features of the backbone come from here.
    """

    def __init__(
        self,
        config,
        hidden_size: int,
        num_heads: int,
        num_layers: int,
        group_size: int,
        first_layer_index: int = 0,
        total_num_layers: int | None = None,
        is_first_stage: bool = True,
        is_last_stage: bool = True,
    ):
        super().__init__()
        total = total_num_layers or num_layers
        self.layers = nn.ModuleList(
            PointTransformerLayer(
                config,
                hidden_size,
                num_heads,
                config.drop_path_rate * index / max(total - 1, 1),
                layer_index=index,
                num_layers=total,
                is_last_stage=is_last_stage,
            )
            for index in range(first_layer_index, first_layer_index + num_layers)
        )
        # A later stage is entered by tokens of its own width, but counts no blocks of the stages before.
        max_query_depth = num_layers - 1 if is_first_stage else 0
        self.prior_slot = PriorSlot(hidden_size, is_last_stage, is_first_stage, max_query_depth)
        self.locality_slot = LocalitySlot(hidden_size, group_size)

    @property
    def needs_query_features(self) -> bool:
        """Whether an adapter asks for the features of the frozen encoder."""
        return self.prior_slot.needs_query_features

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: torch.Tensor,
        context: BlockContext,
        token_depths: Collection[int] = (),
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor | None]]:
        """Run the blocks.

        Args:
            hidden_states: Tokens of shape `(batch_size, sequence_length, hidden_size)`.
            position_embeddings: Of the same shape; added to the input of every block.
            context: What adapters must know of the clouds.
            token_depths: Behind which blocks the tokens of this pass become the `token_features` of the context; no
                adapter may sit on the blocks before.

        Returns:
            The tokens; the tokens that left each block; the attention weights of each block (`None` unless "eager").
        """
        first_prepared = max(token_depths, default=0)
        all_hidden_states, all_attentions = [], []
        for depth, layer in enumerate(self.layers):
            if depth in token_depths:
                context.token_features[depth] = pool_tokens(hidden_states, context.num_prefix_tokens)
            if depth == first_prepared:
                prompt_slots = [layer.prompt_slot for layer in self.layers]
                context = prepare_context(context, prompt_slots, self.prior_slot, self.locality_slot)
            hidden_states, attention_weights = layer(hidden_states + position_embeddings, context)
            all_hidden_states.append(hidden_states)
            all_attentions.append(attention_weights)
        return hidden_states, all_hidden_states, all_attentions

    def token_features(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: torch.Tensor,
        context: BlockContext,
        depths: Collection[int],
    ) -> dict[int, torch.Tensor]:
        """Run the first blocks only, without adapters, for what a point-prior bank is asked with in a single pass.

        Args:
            hidden_states: Tokens of shape `(batch_size, sequence_length, hidden_size)`.
            position_embeddings: Of the same shape; added to the input of every block.
            context: The attention mask, and the number of prefix tokens.
            depths: Behind how many blocks features are wanted.

        Returns:
            Features of shape `(batch_size, hidden_size)`, by depth.
        """
        features = {}
        for depth in range(max(depths) + 1):
            if depth > 0:
                hidden_states, _ = self.layers[depth - 1](hidden_states + position_embeddings, context)
            if depth in depths:
                features[depth] = pool_tokens(hidden_states, context.num_prefix_tokens)
        return features
