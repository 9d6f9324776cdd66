"""Layers of GAPrompt on tokens (arXiv 2505.04119)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ...layers import FreezableBatchNorm1d, recompute_in_backward
from ...ops import farthest_point_sample, gather_points, inverse_distance_weights, knn_indices
from ...slots import AdapterSlot, Backbone, EntrySlot, OutputSlot, ReadoutSlot, TokenSlot
from ...tokens import Tokens
from ..bottleneck import Bottleneck
from ..slot_layer import SlotLayer, bottleneck_size
from .config import GAPromptConfig
from .shift import SHAPE_SIZE, linear_parameters

CENTER_SCALE = 0.3
PROPAGATION_EPS = 1e-8


class StageContext(NamedTuple):
    """What the layers of a stage have in common.

    Attributes:
        shape: The shape vector, of shape `(batch_size, hidden_size)`, or `None` in a stage where nothing asks for it.
        weights: Propagation from the local groups to the patch tokens, of shape
            `(batch_size, num_groups, num_local_groups)`.
        center_indices: Which patch token is the centre of each local group, of shape `(batch_size, num_local_groups)`.
        neighbor_indices: Which are its members, of shape `(batch_size, num_local_groups, num_members)`.
        prompt_positions: Position embeddings of the prompts, of shape `(1, num_prompt_tokens, hidden_size)`, or `None`
            in a stage without prompts.
    """

    shape: torch.Tensor | None
    weights: torch.Tensor
    center_indices: torch.Tensor
    neighbor_indices: torch.Tensor
    prompt_positions: torch.Tensor | None


class ShapeProjection(nn.Module):
    """Linear: what is known of the shape to a vector of the width of the tokens."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight, self.bias = linear_parameters(SHAPE_SIZE, hidden_size)


class PromptCoordinates(nn.Module):
    """Places of the prompts, the same in all blocks."""

    def __init__(self, count: int):
        super().__init__()
        self.coordinates = nn.Parameter(nn.init.trunc_normal_(torch.empty(count, 3), std=0.06, a=-2.0, b=2.0))


class PromptTokens(nn.Module):
    """Prompts of a block, 0 at the start."""

    def __init__(self, count: int, hidden_size: int, dropout: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, hidden_size))
        self.dropout = nn.Dropout(dropout)


class ShapedBottleneck(Bottleneck):
    """LayerNorm and bottleneck."""

    def __init__(self, hidden_size: int, width: int, dropout: float):
        super().__init__(hidden_size, width, dropout)
        self.norm_weight = nn.Parameter(torch.ones(hidden_size))
        self.norm_bias = nn.Parameter(torch.zeros(hidden_size))
        for weight, bias in ((self.down_weight, self.down_bias), (self.up_weight, self.up_bias)):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            nn.init.normal_(bias, std=1e-6)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what is to be added to tokens of shape `(batch_size, sequence_length, hidden_size)`."""
        shape = self.norm_weight.shape
        return super().forward(F.layer_norm(hidden_states, shape, self.norm_weight, self.norm_bias))


class StageLayer(SlotLayer):
    """Around a [`~point_peft_hf.slots.TokenSlot`]: shares the shape vector and the local groups with the blocks."""

    slot_class = TokenSlot
    parts = ("shape_projection", "prompt_places")

    def create_parts(self, adapter_name: str, config: GAPromptConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the projection to the shape vector, and the places of the prompts, where there is a use for them."""
        parts: dict[str, nn.Module] = {}
        has_prompts = bool(config.prompted_blocks(self.slot.stage))
        if has_prompts or self.slot.stage.is_last:
            parts["shape_projection"] = ShapeProjection(self.slot.hidden_size)
        if has_prompts:
            parts["prompt_places"] = PromptCoordinates(config.num_prompt_tokens)
        return parts

    def adapt(self, name: str, tokens: Tokens, backbone: Backbone) -> Tokens:
        """Share what the layers of the stage have in common."""
        key, config, projection = self.key(name), self.configs[name], self.part("shape_projection", name)
        code = tokens.cloud.shared[f"{key}.shape"]
        skips = backbone.config.skip_near_origin
        index = self.slot.stage.index
        centers, neighbors = tokens.cloud.memo.once(
            f"{key}.groups.{index}", lambda: self.find_groups(tokens.centers, skips)
        )
        # The places of the tokens depend on how points were moved, so these weights have a gradient.
        sources = gather_points(tokens.centers, centers)
        count = min(config.num_propagation_neighbors, sources.shape[1])
        weights = inverse_distance_weights(tokens.centers, sources, num_neighbors=count, eps=PROPAGATION_EPS)
        places, positions = self.part("prompt_places", name), None
        if places is not None:
            positions = backbone.position_embedding(places.coordinates[None], index).to(tokens.features.dtype)
        shape = None
        if projection is not None:
            shape = F.linear(code.to(projection.weight.dtype), projection.weight, projection.bias)
        return tokens.sharing(key, StageContext(shape, weights, centers, neighbors, positions))

    def find_groups(self, centers: torch.Tensor, skip_near_origin: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Centres and members of local groups of tokens, as indices of patch tokens; half as many as there are."""
        count, size = max(centers.shape[1] // 2, 1), max(self.slot.stage.group_size // 2, 1)
        indices = farthest_point_sample(centers, count, skip_near_origin=skip_near_origin)
        return indices, knn_indices(gather_points(centers, indices), centers, min(size, centers.shape[1]))


class PropagationLayer(SlotLayer):
    """A layer of a block that may propagate features of local groups to the tokens."""

    # Where in the block it is.
    place = ""

    def _create_norm(self, config: GAPromptConfig) -> dict[str, nn.Module]:
        is_here = config.propagation_place == self.place
        return {"pooled_bn": FreezableBatchNorm1d(self.slot.hidden_size)} if is_here else {}

    def propagate(self, name: str, tokens: Tokens, values: torch.Tensor) -> torch.Tensor:
        """What the local groups give to the patch tokens.

        Args:
            name: Name of the adapter.
            tokens: The tokens.
            values: Their features, with or without positions, of shape `(batch_size, sequence_length, hidden_size)`.

        Returns:
            What is to be added to the patch tokens, of shape `(batch_size, num_groups, hidden_size)`.
        """
        config, context, batch_norm = self.configs[name], self._context(name, tokens), self.part("pooled_bn", name)
        patches, prompts = tokens.of("patch", values), tokens.of(self.key(name), values)
        count, offset = prompts.shape[1], 0
        if config.propagation == "replacement":
            if count > patches.shape[1]:
                raise ValueError(
                    f"`num_prompt_tokens`={count} prompts cannot take the rows of {patches.shape[1]} patch tokens, as "
                    "`propagation`='replacement' wants. Use fewer, or 'aligned'."
                )
            table = torch.cat([patches[:, : patches.shape[1] - count], prompts], dim=1)
        else:
            table = torch.cat([prompts, patches], dim=1)
            offset = count if config.propagation == "aligned" else 0

        def pool(table: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            return gather_points(table, indices).amax(dim=2)

        # A group has as many rows as there are tokens: none of them is kept for the backward pass.
        pooled = recompute_in_backward(pool, table, context.neighbor_indices + offset)  # (B, S, C)
        pooled = (pooled * self._factors(config, pooled)).to(batch_norm.weight.dtype)
        pooled = F.gelu(batch_norm(pooled.flatten(0, 1)).view_as(pooled))
        local = pooled + CENTER_SCALE * gather_points(table, context.center_indices + offset)
        return config.propagation_scale * (context.weights.to(local.dtype) @ local).to(values.dtype)

    def _factors(self, config: GAPromptConfig, pooled: torch.Tensor) -> torch.Tensor | float:
        """How often each group counts, of shape `(batch_size, num_local_groups, 1)`; on average twice."""
        rate = config.local_drop_path * self.slot.layer_index / max(self.slot.stage.total_layers - 1, 1)
        if not self.training or rate == 0:
            return 2.0
        return 1 + pooled.new_empty(*pooled.shape[:2], 1).bernoulli_(1 - rate).div_(1 - rate)

    def _context(self, name: str, tokens: Tokens) -> StageContext:
        context = tokens.cloud.shared.get(self.key(name))
        if context is None:
            raise ValueError(
                f"Block {self.slot.layer_index} got no shape vector of adapter {name!r}. GAPrompt needs the point "
                "slot and the token slot: leave them out of `exclude_modules`, and use a backbone of point_peft_hf."
            )
        return context


class PromptLayer(PropagationLayer):
    """At the start of a block: prompts join; then, if it is there, the propagation."""

    slot_class = EntrySlot
    parts = ("prompt_tokens", "pooled_bn")
    place = "before"

    @classmethod
    def wants(cls, config: GAPromptConfig, slot: AdapterSlot) -> bool:
        """Whether prompts join the block, or features are propagated in front of it."""
        return config.has_prompts(slot.layer_index) or config.propagation_place == cls.place

    def create_parts(self, adapter_name: str, config: GAPromptConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the prompts of the block, and the norm of the propagation."""
        parts = self._create_norm(config)
        if config.has_prompts(self.slot.layer_index):
            size = self.slot.hidden_size
            parts["prompt_tokens"] = PromptTokens(config.num_prompt_tokens, size, config.dropout)
        return parts

    def adapt(self, name: str, tokens: Tokens) -> Tokens:
        """Insert the prompts, and propagate."""
        prompts, config = self.part("prompt_tokens", name), self.configs[name]
        context = self._context(name, tokens)
        if prompts is not None:
            shaped = config.shape_scale * context.shape[:, None] + context.prompt_positions
            rows = prompts.dropout(prompts.weight) + shaped.to(prompts.weight.dtype)  # (B, num_prompt_tokens, C)
            tokens = tokens.insert(self.key(name), rows)
        if self.part("pooled_bn", name) is not None:
            tokens = tokens.add_to("patch", self.propagate(name, tokens, tokens.embedded()))
        return tokens


class EndLayer(PropagationLayer):
    """At the end of a block: the propagation, if it is there, then the bottleneck on all but the class token."""

    slot_class = OutputSlot
    parts = ("bottleneck", "pooled_bn")
    place = "after"

    def create_parts(self, adapter_name: str, config: GAPromptConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the bottleneck, and the norm of the propagation."""
        width = bottleneck_size(config, slot_name, config.bottleneck_size)
        bottleneck = ShapedBottleneck(self.slot.hidden_size, width, config.dropout)
        return {"bottleneck": bottleneck, **self._create_norm(config)}

    def adapt(self, name: str, tokens: Tokens) -> Tokens:
        """Propagate, and adapt the tokens."""
        config, bottleneck = self.configs[name], self.part("bottleneck", name)
        if self.part("pooled_bn", name) is not None:
            tokens = tokens.add_to("patch", self.propagate(name, tokens, tokens.features))
        prefix, rows = tokens.features.tensor_split([tokens.num_prefix], dim=1)
        shape = None
        if config.has_prompts(self.slot.layer_index):
            shape = config.shape_scale * self._context(name, tokens).shape[:, None].to(rows.dtype)

        def run(rows: torch.Tensor, shape: torch.Tensor | None) -> torch.Tensor:
            return rows + config.bottleneck_scale * bottleneck(rows if shape is None else rows + shape).to(rows.dtype)

        rows = recompute_in_backward(run, rows, shape)
        return tokens.with_features(torch.cat([prefix, rows], dim=1))


class ShapeReadout(SlotLayer):
    """In front of a classification head: the shape vector joins the pooled features."""

    slot_class = ReadoutSlot

    @classmethod
    def wants(cls, config: GAPromptConfig, slot: AdapterSlot) -> bool:
        """Whether a head reads it."""
        return slot.kind == "cloud" and slot.is_read

    def adapt(self, name: str, pooled: torch.Tensor, tokens: Tokens, levels: tuple[Tokens, ...]) -> torch.Tensor:
        """Return features of shape `(batch_size, pooled_size + hidden_size)`."""
        return torch.cat([pooled, tokens.cloud.shared[self.key(name)].shape.to(pooled.dtype)], dim=-1)
