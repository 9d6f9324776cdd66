"""What the layers share that insert tokens into a block."""

from __future__ import annotations

import torch

from ..slots import BlockContext, InsertedPrompts, require_context
from .base import SlotLayer
from .config import PointTunerConfig


class InsertingLayer(SlotLayer):
    """Around a [`~point_peft_hf.slots.PromptSlot`]: inserts tokens behind the prefix tokens, for one block.

    A subclass defines [`prompt_count`] and [`make_prompts`].
    """

    def prompt_count(self, config: PointTunerConfig) -> int:
        """Number of tokens that an adapter inserts here.

        Args:
            config: Its configuration.
        """
        raise NotImplementedError(f"{type(self).__name__} must define prompt_count.")

    def make_prompts(self, name: str, hidden_states: torch.Tensor, context: BlockContext) -> torch.Tensor:
        """Make the tokens of an adapter.

        Args:
            name: Name of the adapter.
            hidden_states: The tokens of the block, of shape `(batch_size, sequence_length, hidden_size)`: prefix
                tokens, the prompts of other adapters, and last the `num_groups` patch tokens.
            context: The context of the block.

        Returns:
            Tokens of shape `(batch_size, prompt_count, hidden_size)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define make_prompts.")

    @property
    def prompt_counts(self) -> dict[str, int]:
        """Names of the adapters that insert prompts here, in the order of the tokens, and how many each inserts."""
        own = {name: self.prompt_count(self.configs[name]) for name in self.working_adapters()}
        return {**self.base_layer.prompt_counts, **own}

    def forward(
        self, hidden_states: torch.Tensor, context: BlockContext | None
    ) -> tuple[torch.Tensor, InsertedPrompts]:
        """Insert the prompts.

        Args:
            hidden_states: Tokens of shape `(batch_size, num_prefix_tokens + num_groups, hidden_size)`.
            context: The context.

        Returns:
            Tokens of shape `(batch_size, num_prefix_tokens + num_prompts + num_groups, hidden_size)`, and which
            prompts are among them.
        """
        hidden_states, inserted = self.base_layer(hidden_states, context)
        for name in self.working_adapters():
            context = require_context(context, f"the prompt slot of block {self.slot.layer_index}")
            prompts = self.make_prompts(name, hidden_states, context).to(hidden_states.dtype)
            start = context.num_prefix_tokens + inserted.count
            hidden_states = torch.cat([hidden_states[:, :start], prompts, hidden_states[:, start:]], dim=1)
            inserted = InsertedPrompts((*inserted.names, name), inserted.count + prompts.shape[1])
        return hidden_states, inserted
