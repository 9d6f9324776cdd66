"""A stack of blocks that adapters can be attached to."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from ...slots import Backbone, Stage, TokenSlot
from ...tokens import Tokens
from .slotted import is_constant
from .transformer import PointTransformerLayer


class OwnTokens(nn.Module):
    """The features of class and patch tokens alone; its outputs are what `output_hidden_states` records."""

    def forward(self, tokens: Tokens):
        """Return features of shape `(batch_size, num_prefix + num_groups, hidden_size)`."""
        return tokens.own()


class PointTransformerEncoder(nn.Module):
    """Blocks in a row, each fed with the tokens plus their position embeddings.

    Args:
        config: Configuration of the backbone.
        stage: What its blocks work on.
        num_heads: Attention heads of a block.
        drop_path_rate: Stochastic depth of the last block of the backbone; default: as configured.
    """

    layer_class: ClassVar[type[PointTransformerLayer]] = PointTransformerLayer

    def __init__(self, config, stage: Stage, num_heads: int, drop_path_rate: float | None = None):
        super().__init__()
        self.config, self.numbers = config, stage.layers
        rate = config.drop_path_rate if drop_path_rate is None else drop_path_rate
        self.token_slot = TokenSlot(stage)
        self.layers = nn.ModuleList(
            self.layer_class(config, stage, num_heads, rate * index / max(stage.total_layers - 1, 1), index)
            for index in stage.layers
        )
        self.own_tokens = OwnTokens() if stage.is_encoder else None

    def forward(self, tokens: Tokens, backbone: Backbone, levels: tuple[int, ...] = ()) -> tuple[Tokens, list[Tokens]]:
        """Run the blocks.

        Args:
            tokens: The tokens that enter the stage.
            backbone: What answers the adapters in front of the blocks.
            levels: Numbers of the blocks, counted from 0 in this stage, whose output is wanted.

        Returns:
            The tokens that left the last block, and those that left the blocks of `levels`, in the order of `levels`.
        """
        tokens = _checked(tokens, self.token_slot(tokens, backbone))
        left, depth = {}, 0
        while depth < len(self.layers):
            stop = self._constant_until(tokens, depth, levels)
            if stop > depth:
                tokens = self._run_constant(tokens, depth, stop)
            else:
                stop, tokens = depth + 1, self.layers[depth](tokens)
            depth = stop
            if self.own_tokens is not None:
                self.own_tokens(tokens)
            if depth - 1 in levels:
                left[depth - 1] = tokens
        return tokens, [left[depth] for depth in levels]

    def _constant_until(self, tokens: Tokens, depth: int, levels: tuple[int, ...]) -> int:
        """How far blocks make what depends on the cloud alone of these tokens, one block after the other.

        Not further than up to a block whose output somebody reads.
        """
        is_drawn = self.training and (self.config.drop_path_rate > 0 or self.config.attention_dropout > 0)
        if tokens.constant is None or tokens.cloud.memo.kept is None or is_drawn:
            return depth
        if self.own_tokens is not None and not is_constant(self.own_tokens):
            return depth
        stop = depth
        while stop < len(self.layers) and self.layers[stop].is_constant(reads_first=stop == depth):
            stop += 1
            if stop - 1 in levels:
                break
        return stop

    def _run_constant(self, tokens: Tokens, depth: int, stop: int) -> Tokens:
        """Run these blocks once for each cloud, from the last one on whose output is known."""
        memo, shape = tokens.cloud.memo, tokens.features.shape

        def name_of(number: int) -> str:
            return f"backbone.block.{self.numbers[number]}{tokens.constant}"

        def run() -> torch.Tensor:
            known = next((n for n in reversed(range(depth, stop - 1)) if name_of(n) in memo.values), None)
            first = depth if known is None else known + 1
            last = tokens if known is None else tokens.with_features(memo.values[name_of(known)])
            for layer in self.layers[first:stop]:
                last = layer(last)
            return last.features

        features = memo.once(name_of(stop - 1), run, per_cloud=True, shape=shape)
        return replace(self.layers[depth].entry_slot(tokens), features=features)

    def run_frozen(self, tokens: Tokens, depth: int | None = None) -> Tokens:
        """Run blocks as they were pre-trained."""
        for layer in list(self.layers)[:depth]:
            tokens = layer(tokens, True)
        return tokens


def _checked(before: Tokens, after: Tokens) -> Tokens:
    """Tokens that adapters in front of the blocks returned; those that they changed are not constant any more."""
    is_same = after.features is before.features and after.positions is before.positions and after.mask is before.mask
    return after if is_same or after.constant is None else replace(after, constant=None)
