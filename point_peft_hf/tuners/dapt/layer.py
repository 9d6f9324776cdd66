"""Layers of DAPT (arXiv 2403.01439)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from ...slots import AdapterSlot, Backbone, BlockSlot, LayerSlot, OutputSlot, ReadoutSlot, TokenSlot
from ...tokens import CLASS, PATCH, Tokens
from ..explain import Picture
from ..readout import pool
from ..slot_layer import BranchLayer, SlotLayer, bottleneck_size
from .config import DAPTConfig

_NORM_EPS = 1e-5
# Of the published initialisation, and of `init_weights=False`.
_PUBLISHED_STD = 0.02
_RANDOM_STD = 0.3


class ScaleShift(nn.Module):
    """x * scale + shift over the last axis.

    Shapes:
        - input: `(..., size)`
        - output: as the input
    """

    def __init__(self, size: int):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(size))
        self.shift = nn.Parameter(torch.empty(size))

    @torch.no_grad()
    def reset_parameters(self, init_weights: bool | str = True) -> None:
        """Initialise: scale 1 and shift 0, otherwise with noise."""
        std = {True: 0.0, "published": _PUBLISHED_STD, False: _RANDOM_STD}[init_weights]
        nn.init.normal_(self.scale, 1.0, std)
        nn.init.normal_(self.shift, 0.0, std)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Scale and shift."""
        return torch.addcmul(self.shift, features, self.scale)


class DynamicAdapter(nn.Module):
    """A bottleneck whose result is scaled by one number for each token: s(x) * up(gelu(down(norm(x)))).

    s is a linear layer and a ReLU on the same normed token. It also scales the bias of the way up.

    Shapes:
        - input: `(batch_size, sequence_length, hidden_size)`
        - output: as the input
    """

    def __init__(self, hidden_size: int, inner_size: int, dropout: float):
        super().__init__()
        self.norm_weight = nn.Parameter(torch.ones(hidden_size))
        self.norm_bias = nn.Parameter(torch.zeros(hidden_size))
        self.scale_weight = nn.Parameter(torch.empty(1, hidden_size))
        self.scale_bias = nn.Parameter(torch.zeros(1))
        self.down_weight = nn.Parameter(torch.empty(inner_size, hidden_size))
        self.down_bias = nn.Parameter(torch.zeros(inner_size))
        self.up_weight = nn.Parameter(torch.empty(hidden_size, inner_size))
        self.up_bias = nn.Parameter(torch.zeros(hidden_size))
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def reset_parameters(self, init_weights: bool | str = True) -> None:
        """Initialise as the published code: the way up is 0, so the output is. For `False` it is random."""
        for weight in (self.scale_weight, self.down_weight):
            nn.init.kaiming_uniform_(weight, a=5**0.5)
        if init_weights is False:
            nn.init.xavier_uniform_(self.up_weight)
            nn.init.normal_(self.up_bias, std=_RANDOM_STD)
        else:
            nn.init.zeros_(self.up_weight)

    def normed(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The tokens after the adapter's own norm."""
        return F.layer_norm(hidden_states, hidden_states.shape[-1:], self.norm_weight, self.norm_bias, _NORM_EPS)

    def token_scale(self, normed: torch.Tensor) -> torch.Tensor:
        """The number that scales each token's result, of shape `(batch_size, sequence_length, 1)`."""
        return F.relu(F.linear(normed, self.scale_weight, self.scale_bias))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what is to be added."""
        normed = self.normed(hidden_states)
        inner = self.dropout(F.gelu(F.linear(normed, self.down_weight, self.down_bias)))
        return self.token_scale(normed) * F.linear(inner, self.up_weight, self.up_bias)


class ScaleShiftLayer(SlotLayer):
    """After every norm, every linear layer of a block, and the patch embedding: a trained scale and shift.

    Those after `q_proj`, `k_proj` and `v_proj` are together the one that the published code has after all three.
    """

    slot_class = LayerSlot
    parts = ("scale_shift",)

    def create_parts(self, adapter_name: str, config: DAPTConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create scale and shift."""
        return {"scale_shift": _scale_shift(config, self.slot.hidden_size)}

    def adapt(self, name: str, output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Scale and shift the output of the layer, of shape `(batch_size, sequence_length, hidden_size)`."""
        return self.part("scale_shift", name)(output)


class PositionLayer(SlotLayer):
    """In front of the blocks of a stage: positions are added here, and not again in front of each block."""

    slot_class = TokenSlot

    @classmethod
    def wants(cls, config: DAPTConfig, slot: AdapterSlot) -> bool:
        """Whether positions are added once."""
        return config.position == "once"

    def adapt(self, name: str, tokens: Tokens, backbone: Backbone) -> Tokens:
        """Add the position embeddings."""
        return replace(tokens, features=tokens.embedded(), positions=None)


class FeedForwardLayer(BranchLayer):
    """Parallel to the feed-forward network, inside of stochastic depth: the adapter."""

    branch = "ffn"
    parts = ("dynamic_adapter",)

    def create_parts(self, adapter_name: str, config: DAPTConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the adapter."""
        width = bottleneck_size(config, slot_name, config.bottleneck_size)
        adapter = DynamicAdapter(self.slot.hidden_size, width, config.dropout)
        adapter.reset_parameters(config.init_weights)
        return {"dynamic_adapter": adapter}

    def adapt_output(
        self, name: str, output: torch.Tensor, inputs: torch.Tensor, tokens: Tokens
    ) -> tuple[torch.Tensor, Tokens]:
        """Add what the adapter makes of the input of the network, and carry what the prompt is made of."""
        added = self.part("dynamic_adapter", name)(inputs)
        if makes_prompt(self.slot):
            tokens = tokens.carrying(_carried(self, name), F.gelu(added).mean(dim=1, keepdim=True))
        return output + added, tokens

    def explain(
        self, name: str, result: tuple[torch.Tensor, Tokens], output: torch.Tensor, inputs: torch.Tensor, *rest
    ) -> Iterator[Picture]:
        """Show the numbers that scale what the adapter adds to the patch tokens."""
        adapter, tokens = self.part("dynamic_adapter", name), result[1]
        scales = adapter.token_scale(adapter.normed(inputs.to(adapter.norm_weight.dtype)))
        values = scales[0, -tokens.num_patches :, 0]
        yield Picture("scale of the adapter", values=values, coordinates=tokens.centers[0])


class PromptLayer(SlotLayer):
    """At the end of a block: what its adapter added, averaged over all tokens, becomes a token that stays."""

    slot_class = OutputSlot
    parts = ("internal_prompt",)

    @classmethod
    def wants(cls, config: DAPTConfig, slot: AdapterSlot) -> bool:
        """Whether the block makes a prompt."""
        return makes_prompt(slot)

    def create_parts(self, adapter_name: str, config: DAPTConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create scale and shift of the prompt."""
        return {"internal_prompt": _scale_shift(config, self.slot.hidden_size)}

    def adapt(self, name: str, tokens: Tokens) -> Tokens:
        """Insert the prompt, without a position."""
        mean, tokens = tokens.taking(_carried(self, name))  # (B, 1, C)
        if mean is None:
            raise ValueError(
                f"Block {self.slot.layer_index} makes its prompt of what the adapter at its `ffn_slot` adds, and "
                f"adapter {name!r} has none there. Attach to `ffn_slot` as well, or leave out its `output_slot`."
            )
        return tokens.insert(self.key(name), self.part("internal_prompt", name)(mean), keeps=True)


class ReadoutLayer(SlotLayer):
    """Between pooling and head: class token, prompts and patch tokens, as configured."""

    slot_class = ReadoutSlot

    @classmethod
    def wants(cls, config: DAPTConfig, slot: AdapterSlot) -> bool:
        """Whether a head reads what passes here, and not as the backbone has it."""
        return slot.is_read and bool(readout_parts(config, slot))

    def adapt(self, name: str, pooled: torch.Tensor, tokens: Tokens, levels: tuple[Tokens, ...]) -> torch.Tensor:
        """Read out tokens; of a part segmentation those of the last depth, in addition to `pooled`."""
        parts = [
            pool(levels[-1], self.key(name) if owner == PROMPT else owner, pooling)
            for owner, pooling in readout_parts(self.configs[name], self.slot)
        ]
        return torch.cat([pooled, *parts] if self.slot.kind == "points" else parts, dim=-1)


PROMPT = "prompt"


def readout_parts(config: DAPTConfig, slot: ReadoutSlot) -> list[tuple[str, str]]:
    """What the head reads in addition to or in place of what the backbone gives it: which tokens, and how."""
    prompt = [(PROMPT, config.prompt_pooling)] if config.prompt_pooling else []
    if slot.kind == "points":
        return prompt
    parts = [(CLASS, "each")] if config.class_token and slot.stage.num_class else []
    parts += prompt
    if config.patch_pooling:
        parts.append((PATCH, config.patch_pooling))
    return parts


def makes_prompt(slot: BlockSlot) -> bool:
    """Whether a block makes a prompt: not at the end of a stage that another one follows, where prompts leave."""
    return slot.stage.is_last or slot.layer_index + 1 in slot.stage.layers


def _carried(layer: SlotLayer, name: str) -> str:
    """What the mean of a block goes by on its way from the feed-forward network to the end of the block."""
    return f"{layer.key(name)}.{layer.slot.layer_index}"


def _scale_shift(config: DAPTConfig, size: int) -> ScaleShift:
    scale_shift = ScaleShift(size)
    scale_shift.reset_parameters(config.init_weights)
    return scale_shift
