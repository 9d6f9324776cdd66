"""Layers of PPT (arXiv 2408.11567)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ...slots import AdapterSlot, Backbone, EntrySlot, ReadoutSlot, TokenSlot
from ...tokens import CLASS, PATCH, Tokens
from ..bottleneck import GELUBottleneck
from ..explain import Picture, Places
from ..readout import pool
from ..slot_layer import BranchLayer, SlotLayer, bottleneck_size
from .config import PPTConfig


class SharedLayer(SlotLayer):
    """In front of the blocks of a stage: shares the networks, and in the first stage inserts the second set."""

    slot_class = TokenSlot
    parts = ("patch_network", "prompt_network", "token_network")

    def create_parts(self, adapter_name: str, config: PPTConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the networks; that for prompts only where there are prompts."""
        width = bottleneck_size(config, slot_name, config.bottleneck_size)
        created = {}
        for part in self.parts:
            if part != "prompt_network" or self.slot.stage.index == 0:
                size = self.slot.hidden_size
                created[part] = GELUBottleneck(size, width, size, config.init_weights)
        return created

    def adapt(self, name: str, tokens: Tokens, backbone: Backbone) -> Tokens:
        """Share the networks, and insert the second set with position embeddings and centres."""
        config, key, stage = self.configs[name], self.key(name), self.slot.stage
        tokens = tokens.sharing(key, {part: self.part(part, name) for part in self.parts})
        if stage.index > 0:
            return tokens
        sizes = config.num_prompt_groups or tokens.num_patches, config.prompt_group_size or stage.group_size
        if config.shifted_rows and sizes[0] != tokens.num_patches:
            raise ValueError(
                f"`shifted_rows`=True needs as many prompts as patch tokens, got `num_prompt_groups`={sizes[0]} for "
                f"{tokens.num_patches} patch tokens. Leave `num_prompt_groups` out."
            )
        if sizes == (tokens.num_patches, stage.group_size):
            # The same groups: their tokens are there.
            positions = None if tokens.positions is None else tokens.of(PATCH, tokens.positions)
            return tokens.insert(key, tokens.patches, positions, tokens.centers, keeps=True)
        return tokens.insert(key, *backbone.embed(tokens.cloud.points, *sizes), keeps=True)

    def explain(self, name: str, result: Tokens, *inputs) -> Iterator[Picture]:
        """Show the centres of the second set."""
        centers = [span.coordinates[0] for span in result.spans if span.owner == self.key(name)]
        if centers:
            yield Picture("second set of tokens", [Places("prompt", torch.cat(centers), on_top=True)])


class EntryLayer(SlotLayer):
    """At the start of a block: the networks for patch tokens and for prompts."""

    slot_class = EntrySlot

    def adapt(self, name: str, tokens: Tokens) -> Tokens:
        """Add what they make of the tokens with their position embeddings."""
        key = self.key(name)
        embedded, networks = tokens.embedded(), self.shared(name, tokens, "networks")
        patches, prompts = tokens.of(PATCH, embedded), tokens.of(key, embedded)
        if self.configs[name].shifted_rows and prompts.shape[1]:
            update = networks["patch_network"](torch.cat([patches[:, 1:], prompts[:, :1]], dim=1))
            of_patches, of_first = F.pad(update[:, :-1], (0, 0, 1, 0)), update[:, -1:]
            of_first = F.pad(of_first, (0, 0, 0, prompts.shape[1] - 1))
            of_prompts = of_first + networks["prompt_network"](prompts + of_first)
        else:
            of_patches = networks["patch_network"](patches)
            of_prompts = networks["prompt_network"](prompts) if prompts.shape[1] else None
        tokens = tokens.add_to(PATCH, of_patches)
        return tokens if of_prompts is None else tokens.add_to(key, of_prompts)


class FeedForwardLayer(BranchLayer):
    """Parallel to the feed-forward network, outside of stochastic depth: the network for all tokens."""

    branch = "ffn"

    def adapt_update(
        self, name: str, update: torch.Tensor, inputs: torch.Tensor, tokens: Tokens
    ) -> tuple[torch.Tensor, Tokens]:
        """Add what it makes of the residual stream, `(batch_size, sequence_length, hidden_size)`."""
        return update + self.shared(name, tokens, "networks")["token_network"](tokens.features), tokens


class ReadoutLayer(SlotLayer):
    """Between pooling and head: class token and both sets of tokens."""

    slot_class = ReadoutSlot

    @classmethod
    def wants(cls, config: PPTConfig, slot: AdapterSlot) -> bool:
        """Whether a head reads what passes here, and of a part segmentation the stage with the second set."""
        return slot.is_read and (slot.kind == "cloud" or slot.stage.count == 1)

    def adapt(self, name: str, pooled: torch.Tensor, tokens: Tokens, levels: tuple[Tokens, ...]) -> torch.Tensor:
        """Read out tokens; see [`readout_size`]."""
        key = self.key(name)
        if self.slot.kind == "points":
            return self._summary(key, levels)
        parts = [pool(levels[-1], CLASS, "each")] if self.slot.stage.num_class else []
        owners = [PATCH, key] if self.slot.stage.count == 1 else [PATCH]
        return torch.cat([*parts, *(pool(levels[-1], owner, "mean") for owner in owners)], dim=-1)

    @staticmethod
    def _summary(key: str, levels: Sequence[Tokens]) -> torch.Tensor:
        """Maximum and mean over both sets, what the depths say of a token side by side."""
        both = torch.cat([torch.cat([level.patches, level.of(key)], dim=1) for level in levels], dim=-1)
        return torch.cat([both.amax(dim=1), both.mean(dim=1)], dim=-1)


def readout_size(slot: ReadoutSlot) -> int:
    """Width of what the head reads.

    A classification head reads the class token and the means over patch tokens and prompts, as far as the last stage
    has them. The head of a part segmentation reads maximum and mean over both sets in all depths.
    """
    stage = slot.stage
    if slot.kind == "points":
        return 2 * slot.num_levels * stage.hidden_size if stage.count == 1 else slot.hidden_size
    return stage.hidden_size * (stage.num_class + (2 if stage.count == 1 else 1))
