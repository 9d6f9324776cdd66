"""Layers of the Geometry-aware Adapter (Point-PEFT, arXiv 2310.03059, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ...layers import FreezableBatchNorm1d, add_product, recompute_in_backward, with_known_value
from ...ops import farthest_point_sample, gather_points, inverse_distance_weights, knn_indices
from ...slots import BlockContext, InsertedPrompts, require_context
from ..base import SlotLayer, bottleneck_size
from ..bottleneck import Bottleneck
from .config import GeometryAdapterConfig, GeometryOptions
from .local_attention import LocalAttention


@dataclass
class LocalNeighborhoods:
    """The neighbourhoods of the tokens of a stage, for one adapter and one set of prompts.

    They are made of the tokens that have a place: the prompts that have coordinates, and the patch tokens.

    Attributes:
        center_indices: Which of these tokens each local centre is, of shape `(batch_size, num_local_centers)`.
        neighbor_indices: Which of them are its neighbourhood, of shape
            `(batch_size, num_local_centers, num_local_neighbors)`.
        center_rows: The local centres as rows of the tokens of all clouds, one cloud after the other, of shape
            `(batch_size * num_local_centers,)`.
        neighbor_rows: Likewise the neighbourhoods, of shape
            `(batch_size * num_local_centers, num_local_neighbors)`.
        weights: Propagation from the local centres to all tokens of a block, of shape
            `(batch_size, sequence_length, num_local_centers)`; rows sum to 1, or are 0 for class token and prompts.
        prompt_coordinates: Coordinates of the prompts in the neighbourhoods, each of shape `(num_prompts, 3)`, that
            learn from the weights.
        local_attention: The local attention that the blocks of the stage share, or `None`.
    """

    center_indices: torch.Tensor
    neighbor_indices: torch.Tensor
    center_rows: torch.Tensor
    neighbor_rows: torch.Tensor
    weights: torch.Tensor
    prompt_coordinates: tuple[torch.Tensor, ...]
    local_attention: LocalAttention | None


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
        coordinates, ranges = self._places(context, names)
        num_front, sequence_length = ranges[-1]
        # Which tokens are chosen has no gradient; how far they are from the others has (the prompts' coordinates learn
        # from it).
        with torch.no_grad():
            points = table_points(group_centers, coordinates)
            num_centers, num_neighbors = self._neighborhood_size(config, group_centers.shape[1], points.shape[1])
            center_indices = self._choose_centers(config, points, num_centers)
            centers = gather_points(points, center_indices)
            neighbor_indices = self._choose_neighbors(config, centers, points, num_neighbors)
            places = torch.cat([torch.arange(*limits, device=points.device) for limits in ranges])
            first_rows = torch.arange(len(points), device=points.device)[:, None] * sequence_length
            return LocalNeighborhoods(
                center_indices,
                neighbor_indices,
                center_rows=(first_rows + places[center_indices]).flatten(),
                # Laid out as the local attention wants it, which would otherwise make a copy in each block.
                neighbor_rows=(first_rows[:, None] + places[neighbor_indices]).flatten(0, 1).t().contiguous().t(),
                weights=propagation_weights(config, group_centers, center_indices, num_front, coordinates),
                prompt_coordinates=coordinates,
                local_attention=self.part("local_attention", adapter_name),
            )

    @staticmethod
    def _places(
        context: BlockContext, names: tuple[str, ...]
    ) -> tuple[tuple[torch.Tensor, ...], list[tuple[int, int]]]:
        """The coordinates of all prompts that have some, and where the tokens with a place are in the sequence."""
        coordinates, ranges, start = [], [], context.num_prefix_tokens
        for name in names:
            prompt_set = context.prompts[name]
            stop = start + prompt_set.count
            if prompt_set.coordinates is not None:
                coordinates.append(prompt_set.coordinates)
                ranges.append((start, stop))
            start = stop
        return tuple(coordinates), [*ranges, (start, start + context.group_centers.shape[1])]

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
            result = recompute_in_backward(bottleneck.add_to, result, ffn_output, self.configs[adapter_name].ffn_scale)
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
            neighborhoods = pooled = None
            if self.configs[adapter_name].use_local_aggregation:
                neighborhoods = self._neighborhoods(adapter_name, context, prompts)
                pooled = self._pool(adapter_name, hidden_states, neighborhoods)
            # All of this is cheap next to a block, and would keep several tensors of the size of the tokens.
            hidden_states = recompute_in_backward(
                self._propagate, adapter_name, hidden_states, context, neighborhoods, pooled
            )
        return hidden_states

    def _neighborhoods(
        self, adapter_name: str, context: BlockContext | None, prompts: InsertedPrompts
    ) -> LocalNeighborhoods:
        context = require_context(context, f"the output slot of block {self.slot.layer_index}")
        neighborhoods = context.neighborhoods.get((adapter_name, prompts.names))
        if neighborhoods is None:
            raise ValueError(
                f"The context of block {self.slot.layer_index} has no neighbourhoods for adapter {adapter_name!r} "
                f"with the prompts {list(prompts.names)}. Prepare it with `prepare_context` (see "
                "point_peft_hf.slots) and leave the locality slot among the `target_modules`."
            )
        return neighborhoods

    def _pool(self, adapter_name: str, hidden_states: torch.Tensor, neighborhoods: LocalNeighborhoods) -> torch.Tensor:
        """One feature for each neighbourhood, of shape `(batch_size * num_local_centers, hidden_size)`."""
        config, rows = self.configs[adapter_name], neighborhoods.neighbor_rows
        tokens = hidden_states.flatten(0, 1).to(self.part("pooled_bn", adapter_name).weight.dtype)
        attention = self.part("local_attention", adapter_name) or neighborhoods.local_attention
        kept = self._drop_path(config, tokens, len(rows))
        if attention is not None and config.local_pooling == "max":
            return attention.attend_and_take_maximum(tokens, rows, kept)
        neighbors = F.embedding(rows, tokens)
        if attention is not None:
            update = attention(tokens, rows)
            neighbors = neighbors + (update if kept is None else kept[:, None, None] * update)
        return neighbors.amax(dim=1) if config.local_pooling == "max" else neighbors.mean(dim=1)

    def _drop_path(self, config: GeometryOptions, tokens: torch.Tensor, num_neighborhoods: int) -> torch.Tensor | None:
        """Stochastic depth: a factor for each neighbourhood, as in the published code; `None` for 1."""
        rate = config.local_drop_path * self.slot.layer_index / max(self.slot.num_layers - 1, 1)
        if rate == 0.0 or not self.training:
            return None
        return tokens.new_empty(num_neighborhoods).bernoulli_(1 - rate).div_(1 - rate)

    def _propagate(
        self,
        adapter_name: str,
        hidden_states: torch.Tensor,
        context: BlockContext | None,
        neighborhoods: LocalNeighborhoods | None,
        pooled: torch.Tensor | None,
    ) -> torch.Tensor:
        """Give the features of the neighbourhoods back to the tokens, then the residual bottleneck."""
        config = self.configs[adapter_name]
        if pooled is not None:
            batch_norm = self.part("pooled_bn", adapter_name)
            tokens = hidden_states.flatten(0, 1).to(pooled.dtype)
            center_terms = config.center_scale * F.embedding(neighborhoods.center_rows, tokens)
            if config.gate_center:
                center_terms = center_terms * batch_norm.weight
            features = (F.gelu(batch_norm(pooled)) + center_terms).unflatten(0, (len(hidden_states), -1))
            weights = self._weights(config, context, neighborhoods).to(features.dtype)
            hidden_states = add_product(hidden_states, weights, features, config.propagation_scale)
        bottleneck = self.part("output_bottleneck", adapter_name)
        return hidden_states if bottleneck is None else bottleneck.add_to(hidden_states)

    @staticmethod
    def _weights(config: GeometryOptions, context: BlockContext, neighborhoods: LocalNeighborhoods) -> torch.Tensor:
        """The propagation weights, differentiable with respect to the coordinates of prompts."""
        weights, coordinates = neighborhoods.weights, neighborhoods.prompt_coordinates
        if not (torch.is_grad_enabled() and any(piece.requires_grad for piece in coordinates)):
            return weights
        num_front = weights.shape[1] - context.group_centers.shape[1]

        def compute(*coordinates: torch.Tensor) -> torch.Tensor:
            center_indices = neighborhoods.center_indices
            return propagation_weights(config, context.group_centers, center_indices, num_front, coordinates)

        # Not once for all blocks with its graph: gradient checkpointing goes backward through every block on its own,
        # so blocks must not share a part of the graph.
        return with_known_value(weights, compute, *coordinates)


def table_points(group_centers: torch.Tensor, prompt_coordinates: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Positions of the tokens that have one, of shape `(batch_size, num_prompts + num_groups, 3)`."""
    batch_size = len(group_centers)
    pieces = [piece.to(group_centers.dtype).expand(batch_size, -1, -1) for piece in prompt_coordinates]
    return torch.cat([*pieces, group_centers], dim=1) if pieces else group_centers


def propagation_weights(
    config: GeometryOptions,
    group_centers: torch.Tensor,
    center_indices: torch.Tensor,
    num_front: int,
    prompt_coordinates: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    """Weights from the local centres to the tokens of a block; see [`LocalNeighborhoods`].

    Args:
        config: Configuration of the adapter.
        group_centers: Of shape `(batch_size, num_groups, 3)`.
        center_indices: Which tokens with a place the local centres are, of shape `(batch_size, num_local_centers)`.
        num_front: Number of tokens in front of the patch tokens; nothing is propagated to them.
        prompt_coordinates: Coordinates of the prompts among the tokens with a place.

    Returns:
        Weights of shape `(batch_size, num_front + num_groups, num_local_centers)`.
    """
    points = table_points(group_centers, prompt_coordinates)
    if config.use_propagation:
        weights = inverse_distance_weights(
            group_centers,
            gather_points(points, center_indices),
            power=config.propagation_power,
            eps=config.propagation_eps,
        )
    else:
        groups = torch.arange(points.shape[1] - group_centers.shape[1], points.shape[1], device=points.device)
        weights = (groups[None, :, None] == center_indices[:, None]).to(points.dtype)
    return F.pad(weights, (0, 0, num_front, 0))


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
