"""Layers of PointLoRA (arXiv 2504.16023)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...ops import gather_points
from ...slots import AdapterSlot, Backbone, EntrySlot, LayerSlot, ReadoutSlot, TokenSlot
from ...tokens import PATCH, Tokens
from ..bottleneck import GELUBottleneck
from ..explain import Picture, Places
from ..slot_layer import SlotLayer, bottleneck_size
from .config import PointLoRAConfig

_ENTROPY_EPS = 1e-6
_QKV = ("q_proj", "k_proj", "v_proj")


class Scorer(nn.Module):
    """How much a token is worth, between 0 and 1: Linear - ReLU - Linear - sigmoid."""

    def __init__(self, hidden_size: int):
        super().__init__()
        inner_size = max(hidden_size // 2, 1)
        self.down_weight = nn.Parameter(torch.empty(inner_size, hidden_size))
        self.down_bias = nn.Parameter(torch.empty(inner_size))
        self.up_weight = nn.Parameter(torch.empty(1, inner_size))
        self.up_bias = nn.Parameter(torch.empty(1))
        for weight, bias in ((self.down_weight, self.down_bias), (self.up_weight, self.up_bias)):
            nn.init.kaiming_uniform_(weight, a=5**0.5)
            nn.init.uniform_(bias, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Score tokens of shape `(batch_size, count, hidden_size)`; `(batch_size, count)`."""
        inner = F.relu(F.linear(features, self.down_weight, self.down_bias))
        return F.linear(inner, self.up_weight, self.up_bias).squeeze(-1).sigmoid()


class LowRank(nn.Module):
    """The ways down and up of a low-rank update; either may be left out.

    Args:
        r: The rank.
        in_size: Width of what goes in; 0 to leave the way down out.
        out_size: Width of what comes out; 0 to leave the way up out.
        init_weights: The way up is 0, unless this is `False`.
    """

    def __init__(self, r: int, in_size: int, out_size: int, init_weights: bool | str):
        super().__init__()
        if in_size:
            self.down_weight = nn.Parameter(torch.empty(r, in_size))
            nn.init.kaiming_uniform_(self.down_weight, a=5**0.5)
        if out_size:
            self.up_weight = nn.Parameter(torch.zeros(out_size, r))
            if init_weights is False:
                nn.init.normal_(self.up_weight, std=0.3)


class TokenLayer(SlotLayer):
    """Before the blocks of a stage: selects tokens in the first one, and holds what the blocks share."""

    slot_class = TokenSlot
    serves = (EntrySlot,)
    parts = ("scorer", "patch_mlp", "selected_mlp", "qkv_mlp", "out_mlp")

    def create_parts(self, adapter_name: str, config: PointLoRAConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the scorer and the MLPs."""
        size = self.slot.hidden_size
        inner_size = bottleneck_size(config, slot_name, config.bottleneck_size)
        out_sizes = {"patch_mlp": size, "selected_mlp": size, "qkv_mlp": 3 * size, "out_mlp": size}
        if self.slot.stage.index > 0:
            del out_sizes["selected_mlp"]
        parts: dict[str, nn.Module] = {
            part: GELUBottleneck(size, inner_size, out_size, config.init_weights)
            for part, out_size in out_sizes.items()
        }
        return parts if self.slot.stage.index > 0 else parts | {"scorer": Scorer(size)}

    def adapt(self, name: str, tokens: Tokens, backbone: Backbone) -> Tokens:
        """Insert the tokens of the highest scores, and share the MLPs of tokens."""
        shared = {part: self.part(f"{part}_mlp", name) for part in ("patch", "selected")}
        tokens = tokens.sharing(f"{self.key(name)}.mlps", shared)
        scorer, config = self.part("scorer", name), self.configs[name]
        if scorer is None:
            return tokens
        for (num_groups, group_size, num_kept), weight in zip(config.scales, config.mask_loss_weights, strict=True):
            features, positions, centers = backbone.embed(tokens.cloud.points, num_groups, group_size)
            features = features.to(scorer.down_weight.dtype)
            scores = scorer(features)
            kept_scores, kept = scores.topk(num_kept, dim=1)  # (B, kept), from the highest down
            features, positions, centers = (gather_points(rows, kept) for rows in (features, positions, centers))
            if config.train_scores_by_task:
                # Times 1, but with the gradient of the score.
                features = features * (1 + (kept_scores - kept_scores.detach())).unsqueeze(-1)
            tokens = tokens.insert(self.key(name), features, positions, centers, keeps=True)
            sign = -1 if config.confident_scores else 1
            tokens = tokens.with_loss(sign * weight * negative_entropy(scores))
        return tokens

    def explain(self, name: str, result: Tokens, *inputs: Any) -> Iterator[Picture]:
        """Show where the selected tokens are."""
        spans = [span for span in result.spans if span.owner == self.key(name)]
        if spans:
            scales = zip(spans, self.configs[name].scales, strict=True)
            places = [Places(f"selected of {scale[0]}", span.coordinates[0]) for span, scale in scales]
            yield Picture("tokens selected at several scales", places)


def negative_entropy(scores: torch.Tensor) -> torch.Tensor:
    """Mean of s ln s + (1 - s) ln (1 - s) over all scores: 0 where all are 0 or 1, lowest where all are 0.5."""
    scores = scores.float()
    return (scores * (scores + _ENTROPY_EPS).log() + (1 - scores) * (1 - scores + _ENTROPY_EPS).log()).mean()


class BlockLayer(SlotLayer):
    """At the start of a block: the MLPs of tokens. It also holds the way down of queries, keys and values."""

    slot_class = EntrySlot
    parts = ("qkv_low_rank",)

    def create_parts(self, adapter_name: str, config: PointLoRAConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the way down."""
        return {"qkv_low_rank": LowRank(config.r, self.slot.hidden_size, 0, config.init_weights)}

    def adapt(self, name: str, tokens: Tokens) -> Tokens:
        """Change patch tokens and selected tokens, each by their MLP, which sees them with their positions."""
        mlps = self.shared(name, tokens, "MLPs", f"{self.key(name)}.mlps")
        embedded = tokens.embedded()
        for owner, mlp in ((PATCH, mlps["patch"]), (self.key(name), mlps["selected"])):
            if mlp is not None and tokens.places(owner):
                tokens = tokens.add_to(owner, mlp(tokens.of(owner, embedded)))
        return tokens


class ProjectionLayer(SlotLayer):
    """After a linear layer of the attention: a low-rank update, and what a shared MLP makes of its input.

    What it shares belongs to other layers, which the tuner passes to it ([`use`]).
    """

    slot_class = LayerSlot
    parts = ("low_rank",)

    @classmethod
    def wants(cls, config: PointLoRAConfig, slot: AdapterSlot) -> bool:
        """Whether the layer is one of the attention."""
        return slot.is_in_block and slot.layer in (*_QKV, "out_proj")

    def create_parts(self, adapter_name: str, config: PointLoRAConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the low-rank update."""
        size = self.slot.hidden_size
        in_size = 0 if self.slot.layer in _QKV else size
        return {"low_rank": LowRank(config.r, in_size, size, config.init_weights)}

    def adapt(self, name: str, output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Add to the output of the layer, of shape `(batch_size, sequence_length, hidden_size)`."""
        low_rank = down = self.part("low_rank", name)
        if self.slot.layer in _QKV:
            down = self.block_layer.part("qkv_low_rank", name)
            added = self.token_layer.part("qkv_mlp", name)(inputs, _QKV.index(self.slot.layer), len(_QKV))
        else:
            added = self.token_layer.part("out_mlp", name)(inputs)
        return output + F.linear(F.linear(inputs, down.down_weight), low_rank.up_weight) + added

    @property
    def block_layer(self) -> BlockLayer:
        """The layer of the block with the way down of queries, keys and values."""
        return self._owners[0]

    @property
    def token_layer(self) -> TokenLayer:
        """The layer of the stage with the MLPs."""
        return self._owners[1]

    def use(self, block_layer: BlockLayer, token_layer: TokenLayer) -> None:
        """Set the layers whose parts it uses."""
        # In a tuple they are not modules of this one, so that their weights have one name each.
        self._owners = (block_layer, token_layer)


class ReadoutLayer(SlotLayer):
    """Between pooling and head: the maximum is over the selected tokens as well."""

    slot_class = ReadoutSlot
    serves = (EntrySlot,)

    @classmethod
    def wants(cls, config: PointLoRAConfig, slot: AdapterSlot) -> bool:
        """Whether the read-out is that of a classification, and the selected tokens live till the end."""
        return slot.kind == "cloud" and slot.stage.count == 1

    def adapt(self, name: str, pooled: torch.Tensor, tokens: Tokens, levels: tuple[Tokens, ...]) -> torch.Tensor:
        """Take the maximum of what is pooled and the selected tokens; if another method has read out, leave it."""
        below = self.base_layer
        while isinstance(below, SlotLayer):
            if below.working_adapters():
                return pooled
            below = below.base_layer
        selected = levels[-1].of(self.key(name)).amax(dim=1)
        front, maximum = pooled.split([pooled.shape[-1] - selected.shape[-1], selected.shape[-1]], dim=-1)
        return torch.cat([front, torch.maximum(maximum, selected)], dim=-1)
