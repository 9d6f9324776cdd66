"""Where adapters attach: the contract between the blocks of a backbone and the adapters.

A backbone that wants 3D adapters holds *slots*: modules without parameters that return their input unchanged. An
adapter replaces a slot by a layer of its own and puts the slot back when it is unloaded, so no key of the backbone
ever changes and other PEFT methods (LoRA on the projections, ...) do not notice.

What an adapter must know of the cloud reaches it as an explicit argument, the [`BlockContext`]: never through globals
or hooks. One forward pass of a stage of blocks reads

    context = prepare_context(context, prompt_slots, prior_slot, locality_slot)    # once: retrieval, neighbourhoods
    for layer in layers:
        hidden_states, prompts = layer.prompt_slot(hidden_states, context)
        ... attention, with the outputs of norms and linears through their bias slots ...
        ffn_output = layer.ffn_slot(ffn_output, hidden_states, context)
        hidden_states = layer.output_slot(hidden_states + ffn_output, context, prompts)
        hidden_states = drop_prompts(hidden_states, context, prompts)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn


@dataclass
class PromptSet:
    """What one prompt adapter prepared for the blocks of a stage.

    Attributes:
        count: Number of prompt tokens that a block inserts.
        cache: Features each prompt is enhanced with, of shape `(batch_size, num_prompt_tokens, hidden_size)`, or
            `None` where the prompts are not enhanced.
        coordinates: Position of each prompt token, of shape `(num_prompt_tokens, 3)`, in the unit of the cloud, or
            `None` if the prompts have no position and so never join a neighbourhood.
    """

    count: int
    cache: torch.Tensor | None = None
    coordinates: torch.Tensor | None = None


class InsertedPrompts(NamedTuple):
    """The prompt tokens that are in the sequence of a block, behind its prefix tokens.

    Attributes:
        names: The adapters they come from, in the order of their tokens.
        count: Number of prompt tokens.
    """

    names: tuple[str, ...] = ()
    count: int = 0


@dataclass
class BlockContext:
    """What the blocks of one stage must be told about the clouds, beside the tokens.

    Attributes:
        group_centers: Centres of the patch tokens, of shape `(batch_size, num_groups, 3)`, in the unit of the cloud.
        num_prefix_tokens: Number of tokens in front of the patch tokens that belong to no place (the class token).
        query_features: Features that the point-prior bank is asked with, of shape `(batch_size, hidden_size)`, from
            the frozen encoder. Only needed if an active prompt adapter asks its bank with them.
        token_features: What other banks are asked with, by the number of frozen blocks that the tokens have passed:
            features of shape `(batch_size, hidden_size)`, from [`pool_tokens`].
        sample_ids: Numbers of the clouds in their data set, of shape `(batch_size,)`, -1 where unknown, or `None`.
        attention_mask: Additive attention mask between the patch tokens, of shape
            `(batch_size, 1, num_groups, num_groups)`, or `None` where all tokens see each other.
        prompt_coordinates: By adapter name, the coordinates of the prompts, in the unit of the cloud. The first
            stage's prior slot fills it; a backbone of several stages passes the same dictionary to all of them.
        prompts: By adapter name, what the prompt adapters prepared.
        neighborhoods: By adapter name and by the prompt adapters at work in a block, what the geometry adapters
            prepared.
    """

    group_centers: torch.Tensor
    num_prefix_tokens: int = 0
    query_features: torch.Tensor | None = None
    token_features: dict[int, torch.Tensor] = field(default_factory=dict)
    sample_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    prompt_coordinates: dict[str, torch.Tensor] = field(default_factory=dict)
    prompts: dict[str, PromptSet] = field(default_factory=dict)
    neighborhoods: dict[tuple[str, tuple[str, ...]], Any] = field(default_factory=dict)


class AdapterSlot(nn.Module):
    """A place for adapters: no parameters, returns its input.

    Args:
        hidden_size: Width of the tokens that pass.
    """

    bias = None

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        # Empty and not saved: it only follows the model to its device and dtype, which is what PEFT asks the `weight`
        # of the module under an adapter for.
        self.register_buffer("weight", torch.empty(0), persistent=False)

    def extra_repr(self) -> str:
        """Describe the slot where the model is printed."""
        return f"hidden_size={self.hidden_size}"


class PriorSlot(AdapterSlot):
    """Before the blocks of a stage: retrieval for the prompts. `forward(context) -> context`.

    Args:
        hidden_size: Width of the tokens of the stage.
        is_last_stage: Whether the features of the encoder come from this stage; only there the prior has its width.
        is_first_stage: Whether this is the first stage, which keeps what the prompts of all stages share.
        max_query_depth: Behind how many of its blocks at most the backbone can give `token_features`; `None` if it
            gives none.
    """

    def __init__(
        self,
        hidden_size: int,
        is_last_stage: bool = True,
        is_first_stage: bool = True,
        max_query_depth: int | None = None,
    ):
        super().__init__(hidden_size)
        self.is_last_stage = is_last_stage
        self.is_first_stage = is_first_stage
        self.max_query_depth = max_query_depth

    @property
    def needs_query_features(self) -> bool:
        """Whether the context must bring `query_features`."""
        return False

    @property
    def query_depths(self) -> frozenset[int]:
        """For which numbers of blocks the context must bring `token_features`."""
        return frozenset()

    @property
    def updates_bank(self) -> bool:
        """Whether [`update_banks`] must be called at the end of this forward pass."""
        return False

    def update_banks(self, context: BlockContext) -> None:
        """Refresh the banks that are updated in training; here there are none.

        Args:
            context: What the pass began with, but with the features of the adapted model in the place of those of the
                frozen one.
        """

    def forward(self, context: BlockContext) -> BlockContext:
        """Return the context unchanged."""
        return context


class LocalitySlot(AdapterSlot):
    """Before the blocks of a stage: neighbourhoods of the tokens. `forward(context, prompt_sets) -> context`.

    Args:
        hidden_size: Width of the tokens of the stage.
        group_size: Number of points of a group of the backbone, the published yardstick for the size of a
            neighbourhood.
    """

    def __init__(self, hidden_size: int, group_size: int):
        super().__init__(hidden_size)
        self.group_size = group_size

    def forward(self, context: BlockContext, prompt_sets: Iterable[tuple[str, ...]] = ((),)) -> BlockContext:
        """Return the context unchanged."""
        return context


class BlockSlot(AdapterSlot):
    """A slot inside a block.

    Args:
        hidden_size: Width of the tokens that pass.
        layer_index: Number of the block, counted from 0 over all stages.
        num_layers: Number of blocks of the backbone.
    """

    def __init__(self, hidden_size: int, layer_index: int, num_layers: int):
        super().__init__(hidden_size)
        self.layer_index = layer_index
        self.num_layers = num_layers

    def extra_repr(self) -> str:
        """Describe the slot where the model is printed."""
        return f"hidden_size={self.hidden_size}, layer_index={self.layer_index}"


class PromptSlot(BlockSlot):
    """At the start of a block: where prompt tokens join the sequence.

    Args:
        hidden_size: Width of the tokens.
        layer_index: Number of the block, counted from 0 over all stages.
        num_layers: Number of blocks of the backbone.
        is_last_stage: Whether the features of the encoder come from the stage of this block.
    """

    def __init__(self, hidden_size: int, layer_index: int, num_layers: int, is_last_stage: bool = True):
        super().__init__(hidden_size, layer_index, num_layers)
        self.is_last_stage = is_last_stage

    @property
    def prompt_counts(self) -> dict[str, int]:
        """Names of the adapters that insert prompts here, in the order of the tokens, and how many each inserts."""
        return {}

    def forward(
        self, hidden_states: torch.Tensor, context: BlockContext | None
    ) -> tuple[torch.Tensor, InsertedPrompts]:
        """Return the tokens unchanged, and that no prompt was inserted."""
        return hidden_states, InsertedPrompts()


class FeedForwardSlot(BlockSlot):
    """Behind the feed-forward network, before its residual connection."""

    def forward(
        self, ffn_output: torch.Tensor, hidden_states: torch.Tensor, context: BlockContext | None
    ) -> torch.Tensor:
        """Return `ffn_output` unchanged; `hidden_states` is the residual stream it will be added to."""
        return ffn_output


class OutputSlot(BlockSlot):
    """At the end of a block."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: BlockContext | None,
        prompts: InsertedPrompts = InsertedPrompts(),  # noqa: B008 (immutable)
    ) -> torch.Tensor:
        """Return the tokens unchanged."""
        return hidden_states


class BiasSlot(BlockSlot):
    """Behind a norm or a linear layer with a bias, so that an adapter can shift the bias without touching it."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the tokens unchanged."""
        return hidden_states


def prepare_context(
    context: BlockContext,
    prompt_slots: Iterable[PromptSlot],
    prior_slot: PriorSlot,
    locality_slot: LocalitySlot,
) -> BlockContext:
    """Let the adapters prepare what the blocks of a stage share, once in a forward pass.

    Args:
        context: The context with what the backbone knows.
        prompt_slots: The prompt slots of the blocks that will be run with this context.
        prior_slot: The prior slot of the stage.
        locality_slot: The locality slot of the stage.

    Returns:
        A new context; the one passed is left as it is.
    """
    context = replace(context, prompts={}, neighborhoods={})
    context = prior_slot(context)
    prompt_counts = [slot.prompt_counts for slot in prompt_slots]
    for counts in prompt_counts:
        for name, count in counts.items():
            # Prompts of which the prior slot has nothing to say have no place either.
            context.prompts.setdefault(name, PromptSet(count))
    # Blocks with other prompts have other point sets; each set gets its neighbourhoods once.
    prompt_sets = tuple(dict.fromkeys(map(tuple, prompt_counts)))
    return locality_slot(context, prompt_sets)


def drop_prompts(hidden_states: torch.Tensor, context: BlockContext | None, prompts: InsertedPrompts) -> torch.Tensor:
    """Remove the prompt tokens of a block from its sequence.

    Args:
        hidden_states: Tokens of shape `(batch_size, num_prefix_tokens + prompts.count + num_groups, hidden_size)`.
        context: The context of the block.
        prompts: What the block's prompt slot inserted.

    Returns:
        Tokens of shape `(batch_size, num_prefix_tokens + num_groups, hidden_size)`.
    """
    if prompts.count == 0:
        return hidden_states
    prefix = context.num_prefix_tokens
    return torch.cat([hidden_states[:, :prefix], hidden_states[:, prefix + prompts.count :]], dim=1)


def pool_tokens(hidden_states: torch.Tensor, num_prefix_tokens: int = 0) -> torch.Tensor:
    """What a point-prior bank holds and is asked with in a single pass: the mean over the patch tokens.

    Args:
        hidden_states: Tokens of shape `(batch_size, num_prefix_tokens + num_groups, hidden_size)`.
        num_prefix_tokens: Number of tokens in front of the patch tokens.

    Returns:
        Features of shape `(batch_size, hidden_size)`, without gradient.
    """
    return hidden_states[:, num_prefix_tokens:].detach().mean(dim=1)


def require_context(context: BlockContext | None, slot_name: str) -> BlockContext:
    """Return the context, or explain what a backbone has to pass.

    Raises:
        ValueError: If `context` is `None`.
    """
    if context is None:
        raise ValueError(
            f"The adapter at {slot_name} got no geometry: the block was called without `context`. Pass "
            "`context=BlockContext(group_centers=..., num_prefix_tokens=...)`, prepared once in the forward pass by "
            "`prepare_context` (see point_peft_hf.slots)."
        )
    return context
