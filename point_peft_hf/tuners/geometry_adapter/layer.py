"""Layers of the Geometry-aware Adapter (Point-PEFT, arXiv 2310.03059, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ...layers import FreezableBatchNorm1d
from ...ops import farthest_point_sample, gather_points, inverse_distance_weights, knn_indices
from ...slots import BlockContext, InsertedPrompts, require_context
from ..base import SlotLayer, bottleneck_size
from ..bottleneck import Bottleneck
from .config import GeometryAdapterConfig, GeometryOptions


@dataclass
class LocalNeighborhoods:
    """The neighbourhoods of the tokens of a stage, for one adapter and one set of prompts.

    Rows of the token table are the prompts that have coordinates, then the patch tokens.

    Attributes:
        center_indices: Row of each local centre, of shape `(batch_size, num_local_centers)`.
        neighbor_indices: Rows of its neighbourhood, of shape `(batch_size, num_local_centers, num_local_neighbors)`.
        weights: Propagation from the local centres to the patch tokens, of shape
            `(batch_size, num_groups, num_local_centers)`; rows sum to 1. `None` where prompt coordinates learn from
            it: each block then computes its own.
        prompt_coordinates: Learnable coordinates of the prompts in the table, each of shape `(num_prompts, 3)`.
        prompt_ranges: Which of the block's prompt tokens are in the table, as (start, stop).
        local_attention: The local attention that the blocks of the stage share, or `None`.
    """

    center_indices: torch.Tensor
    neighbor_indices: torch.Tensor
    weights: torch.Tensor | None
    prompt_coordinates: tuple[torch.Tensor, ...]
    prompt_ranges: tuple[tuple[int, int], ...]
    local_attention: nn.Module | None


class LocalAttention(nn.Module):
    """Self-attention inside a neighbourhood, in a narrow space; no residual connection of its own.

    The scores are scaled by the inner width, not by that of a head, as in the published code.

    Args:
        hidden_size: Width of the tokens.
        inner_size: Width of queries, keys and values.
        num_heads: Number of heads.
    """

    def __init__(self, hidden_size: int, inner_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = inner_size**-0.5
        self.norm_weight = nn.Parameter(torch.empty(hidden_size))
        self.norm_bias = nn.Parameter(torch.empty(hidden_size))
        self.qkv_weight = nn.Parameter(torch.empty(3 * inner_size, hidden_size))
        self.proj_weight = nn.Parameter(torch.empty(hidden_size, inner_size))
        self.proj_bias = nn.Parameter(torch.empty(hidden_size))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as PyTorch's linear and norm layers."""
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)
        for weight in (self.qkv_weight, self.proj_weight):
            nn.init.kaiming_uniform_(weight, a=5**0.5)
        bound = self.proj_weight.shape[1] ** -0.5
        nn.init.uniform_(self.proj_bias, -bound, bound)

    def forward(self, table: torch.Tensor, neighbor_indices: torch.Tensor) -> torch.Tensor:
        """Attend inside each neighbourhood.

        Args:
            table: Tokens of shape `(batch_size, num_rows, hidden_size)`.
            neighbor_indices: Rows of the neighbourhoods, of shape `(batch_size, num_centers, num_neighbors)`.

        Returns:
            What is to be added to the tokens of the neighbourhoods, of shape
            `(batch_size, num_centers, num_neighbors, hidden_size)`.
        """
        # Norm and projection act on single tokens, so they come before the gather: each token once instead of once for
        # every neighbourhood it is in.
        normed = F.layer_norm(table, table.shape[-1:], self.norm_weight, self.norm_bias, 1e-5)
        qkv = gather_points(F.linear(normed, self.qkv_weight), neighbor_indices)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        attention = F.softmax(query @ key.transpose(-1, -2) * self.scale, dim=-1)
        return F.linear((attention @ value).transpose(2, 3).flatten(-2), self.proj_weight, self.proj_bias)


class LocalityLayerMixin:
    """Around a [`~point_peft_hf.slots.LocalitySlot`]: finds the neighbourhoods, once in a forward pass."""

    parts = ("local_attention",)

    def create_parts(self, adapter_name: str, config: GeometryOptions, slot_name: str) -> dict[str, nn.Module]:
        """Create the local attention that the blocks of the stage share."""
        if not config.share_local_attention:
            return {}
        attention = create_local_attention(config, self.slot.hidden_size)
        return {} if attention is None else {"local_attention": attention}

    def forward(self, context: BlockContext, prompt_sets: Iterable[tuple[str, ...]] = ((),)) -> BlockContext:
        """Add the neighbourhoods of the tokens to the context, for each set of prompts that a block will have."""
        context = self.base_layer(context, prompt_sets)
        for adapter_name in self.working_adapters():
            config = self.configs[adapter_name]
            if not config.use_local_aggregation:
                continue
            for names in prompt_sets:
                context.neighborhoods[adapter_name, names] = self._find_neighborhoods(
                    adapter_name, config, context, names
                )
        return context

    def _find_neighborhoods(
        self, adapter_name: str, config: GeometryOptions, context: BlockContext, names: tuple[str, ...]
    ) -> LocalNeighborhoods:
        group_centers = context.group_centers
        coordinates, ranges = self._prompt_coordinates(context, names)
        # Which tokens are chosen has no gradient; how far they are from the others has (the prompts' coordinates learn
        # from it).
        with torch.no_grad():
            points = table_points(group_centers, coordinates)
            num_centers, num_neighbors = self._neighborhood_size(config, group_centers.shape[1], points.shape[1])
            center_indices = self._choose_centers(config, points, num_centers)
            centers = gather_points(points, center_indices)
            neighbor_indices = self._choose_neighbors(config, centers, points, num_neighbors)
        weights = None
        if not config.use_propagation:
            first_group = points.shape[1] - group_centers.shape[1]
            groups = torch.arange(first_group, points.shape[1], device=points.device)
            weights = (groups[None, :, None] == center_indices[:, None]).to(points.dtype)
        elif not (torch.is_grad_enabled() and any(piece.requires_grad for piece in coordinates)):
            weights = propagation_weights(config, group_centers, centers)
        return LocalNeighborhoods(
            center_indices, neighbor_indices, weights, coordinates, ranges, self.part("local_attention", adapter_name)
        )

    @staticmethod
    def _prompt_coordinates(
        context: BlockContext, names: tuple[str, ...]
    ) -> tuple[tuple[torch.Tensor, ...], tuple[tuple[int, int], ...]]:
        """The coordinates of all prompts that have some, and where those prompts are among the block's prompts."""
        pieces, ranges, start = [], [], 0
        for name in names:
            prompt_set = context.prompts[name]
            stop = start + prompt_set.count
            if prompt_set.coordinates is not None:
                pieces.append(prompt_set.coordinates)
                ranges.append((start, stop))
            start = stop
        return tuple(pieces), tuple(ranges)

    def _neighborhood_size(self, config: GeometryOptions, num_groups: int, num_rows: int) -> tuple[int, int]:
        num_centers = config.num_local_centers
        num_neighbors = config.num_local_neighbors
        for name, value in (("num_local_centers", num_centers), ("num_local_neighbors", num_neighbors)):
            if value is not None and value > num_rows:
                raise ValueError(
                    f"`{name}`={value} is more than there are tokens: {num_rows} (groups and prompts with "
                    f"coordinates). Use at most {num_groups}, or leave it out for the default."
                )
        if num_centers is None:
            num_centers = max(num_groups // 2, 1)
        if num_neighbors is None:
            num_neighbors = min(max(self.slot.group_size // 2, 1), num_rows)
        return num_centers, num_neighbors

    @staticmethod
    def _choose_centers(config: GeometryOptions, points: torch.Tensor, num_centers: int) -> torch.Tensor:
        if config.center_selection == "fps":
            return farthest_point_sample(points, num_centers)
        chosen = torch.randperm(points.shape[1], generator=torch.Generator().manual_seed(0))[:num_centers]
        return chosen.to(points.device).expand(len(points), -1)

    @staticmethod
    def _choose_neighbors(
        config: GeometryOptions, centers: torch.Tensor, points: torch.Tensor, num_neighbors: int
    ) -> torch.Tensor:
        if config.neighbor_selection == "knn":
            return knn_indices(centers, points, num_neighbors)
        generator = torch.Generator().manual_seed(1)
        order = torch.rand(centers.shape[1], points.shape[1], generator=generator).argsort(dim=1)[:, :num_neighbors]
        return order.to(points.device).expand(len(points), -1, -1)


class FeedForwardLayerMixin:
    """Around a [`~point_peft_hf.slots.FeedForwardSlot`]: f + scale * bottleneck(f)."""

    parts = ("ffn_bottleneck",)

    def create_parts(self, adapter_name: str, config: GeometryOptions, slot_name: str) -> dict[str, nn.Module]:
        """Create the bottleneck behind the feed-forward network."""
        return {"ffn_bottleneck": create_bottleneck(config, self.slot.hidden_size, slot_name)}

    def forward(
        self, ffn_output: torch.Tensor, hidden_states: torch.Tensor, context: BlockContext | None
    ) -> torch.Tensor:
        """Adapt the output of the feed-forward network, of shape `(batch_size, sequence_length, hidden_size)`."""
        ffn_output = self.base_layer(ffn_output, hidden_states, context)
        result = ffn_output
        for adapter_name in self.working_adapters():
            bottleneck = self.part("ffn_bottleneck", adapter_name)
            result = result + self.configs[adapter_name].ffn_scale * bottleneck(ffn_output).to(ffn_output.dtype)
        return result


class OutputLayerMixin:
    """Around an [`~point_peft_hf.slots.OutputSlot`]: local aggregation, propagation, and a residual bottleneck."""

    # No part may end like a module to save: PEFT compares ends of names, and "norm" is a common name of a norm.
    parts = ("output_bottleneck", "pooled_bn", "local_attention")

    def create_parts(self, adapter_name: str, config: GeometryOptions, slot_name: str) -> dict[str, nn.Module]:
        """Create the bottleneck at the end of the block and what the block has of the local aggregation."""
        created, hidden_size = {}, self.slot.hidden_size
        if config.use_output_bottleneck:
            created["output_bottleneck"] = create_bottleneck(config, hidden_size, slot_name)
        if config.use_local_aggregation:
            created["pooled_bn"] = FreezableBatchNorm1d(hidden_size)
            if config.initialization == "zero" and config.init_weights:
                nn.init.zeros_(created["pooled_bn"].weight)
            attention = None if config.share_local_attention else create_local_attention(config, hidden_size)
            if attention is not None:
                created["local_attention"] = attention
        return created

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: BlockContext | None,
        prompts: InsertedPrompts = InsertedPrompts(),  # noqa: B008 (immutable)
    ) -> torch.Tensor:
        """Adapt the tokens at the end of a block.

        Args:
            hidden_states: Tokens of shape `(batch_size, num_prefix_tokens + prompts.count + num_groups, hidden_size)`.
            context: The context, with the neighbourhoods of the stage.
            prompts: The prompt tokens among the tokens.

        Returns:
            Tokens of the same shape.
        """
        hidden_states = self.base_layer(hidden_states, context, prompts)
        for adapter_name in self.working_adapters():
            if self.configs[adapter_name].use_local_aggregation:
                hidden_states = self._aggregate_and_propagate(adapter_name, hidden_states, context, prompts)
            bottleneck = self.part("output_bottleneck", adapter_name)
            if bottleneck is not None:
                hidden_states = hidden_states + bottleneck(hidden_states).to(hidden_states.dtype)
        return hidden_states

    def _aggregate_and_propagate(
        self, adapter_name: str, hidden_states: torch.Tensor, context: BlockContext | None, prompts: InsertedPrompts
    ) -> torch.Tensor:
        context = require_context(context, f"the output slot of block {self.slot.layer_index}")
        neighborhoods = context.neighborhoods.get((adapter_name, prompts.names))
        if neighborhoods is None:
            raise ValueError(
                f"The context of block {self.slot.layer_index} has no neighbourhoods for adapter {adapter_name!r} "
                f"with the prompts {list(prompts.names)}. Prepare it with `prepare_context` (see "
                "point_peft_hf.slots) and leave the locality slot among the `target_modules`."
            )
        config = self.configs[adapter_name]
        prefix = context.num_prefix_tokens
        patches = hidden_states[:, prefix + prompts.count :]
        pieces = [hidden_states[:, prefix + start : prefix + stop] for start, stop in neighborhoods.prompt_ranges]
        table = torch.cat([*pieces, patches], dim=1) if pieces else patches

        features = self._aggregate(adapter_name, config, table, neighborhoods)
        weights = neighborhoods.weights
        if weights is None:
            # Computed here, not once for all blocks: gradient checkpointing goes backward through every block on its
            # own, so blocks must not share a part of the graph.
            points = table_points(context.group_centers, neighborhoods.prompt_coordinates)
            centers = gather_points(points, neighborhoods.center_indices)
            weights = propagation_weights(config, context.group_centers, centers)
        update = config.propagation_scale * (weights.to(features.dtype) @ features)
        patches = patches + update.to(patches.dtype)
        return torch.cat([hidden_states[:, : prefix + prompts.count], patches], dim=1)

    def _aggregate(
        self, adapter_name: str, config: GeometryOptions, table: torch.Tensor, neighborhoods: LocalNeighborhoods
    ) -> torch.Tensor:
        """One feature for each local centre, of shape `(batch_size, num_local_centers, hidden_size)`."""
        batch_norm = self.part("pooled_bn", adapter_name)
        table = table.to(batch_norm.weight.dtype)
        attention = self.part("local_attention", adapter_name) or neighborhoods.local_attention
        neighbors = gather_points(table, neighborhoods.neighbor_indices)
        if attention is not None:
            neighbors = neighbors + self._drop_path(config, attention(table, neighborhoods.neighbor_indices))
        pooled = neighbors.amax(dim=2) if config.local_pooling == "max" else neighbors.mean(dim=2)
        features = F.gelu(batch_norm(pooled.flatten(0, 1))).view_as(pooled)
        center_terms = config.center_scale * gather_points(table, neighborhoods.center_indices)
        if config.gate_center:
            center_terms = center_terms * batch_norm.weight
        return features + center_terms

    def _drop_path(self, config: GeometryOptions, neighbors: torch.Tensor) -> torch.Tensor:
        """Stochastic depth; it drops whole neighbourhoods, as in the published code."""
        rate = config.local_drop_path * self.slot.layer_index / max(self.slot.num_layers - 1, 1)
        if rate == 0.0 or not self.training:
            return neighbors
        kept = neighbors.new_empty(*neighbors.shape[:2], 1, 1).bernoulli_(1 - rate)
        return neighbors * kept.div_(1 - rate)


def table_points(group_centers: torch.Tensor, prompt_coordinates: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Positions of the rows of the token table, of shape `(batch_size, num_prompts + num_groups, 3)`."""
    batch_size = len(group_centers)
    pieces = [piece.to(group_centers.dtype).expand(batch_size, -1, -1) for piece in prompt_coordinates]
    return torch.cat([*pieces, group_centers], dim=1) if pieces else group_centers


def propagation_weights(config: GeometryOptions, group_centers: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """Weights from the local centres to the patch tokens, of shape `(batch_size, num_groups, num_local_centers)`."""
    return inverse_distance_weights(group_centers, centers, power=config.propagation_power, eps=config.propagation_eps)


def create_bottleneck(config: GeometryOptions, hidden_size: int, slot_name: str) -> Bottleneck:
    """Create and initialise a bottleneck of the width that is configured for a slot."""
    bottleneck = Bottleneck(hidden_size, bottleneck_size(config, slot_name, config.bottleneck_size), config.dropout)
    bottleneck.reset_parameters(config.initialization if config.init_weights else "random")
    return bottleneck


def create_local_attention(config: GeometryOptions, hidden_size: int) -> LocalAttention | None:
    """Create and initialise a local attention, if the configuration has one."""
    if not (config.use_local_aggregation and config.use_local_attention):
        return None
    attention = LocalAttention(hidden_size, config.local_attention_size, config.local_attention_heads)
    attention.reset_parameters()
    return attention


class GeometryAdapterLayer(SlotLayer):
    """Base of the layers of type GEOMETRY_ADAPTER."""

    prefix = "geometry_adapter_"
    configs: dict[str, GeometryAdapterConfig]


class GeometryAdapterLocalityLayer(LocalityLayerMixin, GeometryAdapterLayer):
    """Locality layer of type GEOMETRY_ADAPTER."""


class GeometryAdapterFeedForwardLayer(FeedForwardLayerMixin, GeometryAdapterLayer):
    """Feed-forward layer of type GEOMETRY_ADAPTER."""


class GeometryAdapterOutputLayer(OutputLayerMixin, GeometryAdapterLayer):
    """Output layer of type GEOMETRY_ADAPTER."""
