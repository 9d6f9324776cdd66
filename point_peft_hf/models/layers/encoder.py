"""A stack of blocks that adapters can be attached to."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ...slots import Backbone, Stage, TokenSlot
from ...tokens import Tokens
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
        tokens = self.token_slot(tokens, backbone)
        left = {}
        for depth, layer in enumerate(self.layers):
            tokens = layer(tokens)
            if self.own_tokens is not None:
                self.own_tokens(tokens)
            if depth in levels:
                left[depth] = tokens
        return tokens, [left[depth] for depth in levels]

    def run_frozen(self, tokens: Tokens, depth: int | None = None) -> Tokens:
        """Run blocks as they were pre-trained."""
        for layer in list(self.layers)[:depth]:
            tokens = layer(tokens, True)
        return tokens
