"""Layers of the Geometry-aware Adapter (Point-PEFT, arXiv 2310.03059, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ...layers import FreezableBatchNorm1d, add_product, recompute_in_backward, with_known_value
from ...ops import farthest_point_sample, gather_points, inverse_distance_weights, knn_indices
from ...slots import Backbone, OutputSlot, TokenSlot
from ...tokens import Tokens
from ..bottleneck import Bottleneck
from ..explain import Picture, Places
from ..slot_layer import BranchLayer, SlotLayer, bottleneck_size
from .config import GeometryOptions
from .local_attention import LocalAttention

# Of the published method.
LOCAL_ATTENTION_SIZE = 18
LOCAL_ATTENTION_HEADS = 6
CENTER_SCALE = 0.3
PROPAGATION_POWER = 2.0
PROPAGATION_EPS = 1e-8


@dataclass
class LocalNeighborhoods:
    """The neighbourhoods of the tokens of a block, for one adapter.

    They are made of the tokens that have a place: patch tokens, and inserted tokens that have coordinates.

    Attributes:
        center_indices: Which of these tokens each local centre is, of shape `(batch_size, num_local_centers)`.
        neighbor_indices: Which of them are its neighbourhood, of shape
            `(batch_size, num_local_centers, num_local_neighbors)`.
        center_rows: The local centres as rows of the tokens of all clouds, one cloud after the other, of shape
            `(batch_size * num_local_centers,)`.
        neighbor_rows: Likewise the neighbourhoods, of shape
            `(batch_size * num_local_centers, num_local_neighbors)`.
        weights: Propagation from the local centres to all tokens of a block, of shape
            `(batch_size, sequence_length, num_local_centers)`; rows sum to 1, or are 0 for tokens other than patches.
    """

    center_indices: torch.Tensor
    neighbor_indices: torch.Tensor
    center_rows: torch.Tensor
    neighbor_rows: torch.Tensor
    weights: torch.Tensor


class SharedAttentionLayer(SlotLayer):
    """Around a [`~point_peft_hf.slots.TokenSlot`]: the local attention that the blocks of the stage share."""

    slot_class = TokenSlot
    serves = (OutputSlot,)
    parts = ("local_attention",)

    def create_parts(self, adapter_name: str, config: GeometryOptions, slot_name: str) -> dict[str, nn.Module]:
        """Create the local attention."""
        attention = LocalAttention(self.slot.hidden_size, LOCAL_ATTENTION_SIZE, LOCAL_ATTENTION_HEADS)
        attention.reset_parameters()
        return {"local_attention": attention}

    def adapt(self, name: str, tokens: Tokens, backbone: Backbone) -> Tokens:
        """Share it."""
        return tokens.sharing(f"{self.key(name)}.local_attention", self.part("local_attention", name))


class FeedForwardLayer(BranchLayer):
    """After the feed-forward network: f + scale * bottleneck(f)."""

    branch = "ffn"
    parts = ("ffn_bottleneck",)

    def create_parts(self, adapter_name: str, config: GeometryOptions, slot_name: str) -> dict[str, nn.Module]:
        """Create the bottleneck after the feed-forward network."""
        return {"ffn_bottleneck": create_bottleneck(config, self.slot.hidden_size, slot_name)}

    def adapt_update(
        self, name: str, update: torch.Tensor, inputs: torch.Tensor, tokens: Tokens
    ) -> tuple[torch.Tensor, Tokens]:
        """Adapt the output of the feed-forward network, of shape `(batch_size, sequence_length, hidden_size)`."""
        bottleneck = self.part("ffn_bottleneck", name)
        return recompute_in_backward(bottleneck.add_to, update, update, self.configs[name].ffn_scale), tokens


class OutputLayer(SlotLayer):
    """At the end of a block: local aggregation, propagation, and a residual bottleneck."""

    slot_class = OutputSlot
    # No part may end like a module to save: PEFT compares ends of names, and "norm" is a common name of a norm.
    parts = ("output_bottleneck", "pooled_bn")

    def create_parts(self, adapter_name: str, config: GeometryOptions, slot_name: str) -> dict[str, nn.Module]:
        """Create the bottleneck at the end of the block and the norm of the local aggregation."""
        batch_norm = FreezableBatchNorm1d(self.slot.hidden_size)
        if config.init_weights is True:
            nn.init.zeros_(batch_norm.weight)
        bottleneck = create_bottleneck(config, self.slot.hidden_size, slot_name)
        return {"output_bottleneck": bottleneck, "pooled_bn": batch_norm}

    def adapt(self, name: str, tokens: Tokens) -> Tokens:
        """Adapt the tokens at the end of a block."""
        neighborhoods = self._neighborhoods(name, tokens)
        pooled = self.pool(name, tokens, neighborhoods)
        # All of this is cheap next to a block, and would keep several tensors of the size of the tokens.
        features = recompute_in_backward(
            self._propagate, name, tokens.features, self._weights(name, tokens, neighborhoods), neighborhoods, pooled
        )
        return tokens.with_features(features)

    # -- Neighbourhoods -----------------------------------------------------------------------------------------------

    def _neighborhoods(self, name: str, tokens: Tokens) -> LocalNeighborhoods:
        """The neighbourhoods; blocks with the same tokens share them."""
        layout = "".join([f"/{span.owner}:{span.count}:{span.coordinates is not None}" for span in tokens.spans])
        return tokens.cloud.memo.once(
            f"{self.key(name)}.neighborhoods.{self.slot.stage.index}{layout}",
            lambda: self.find_neighborhoods(name, tokens),
        )

    def find_neighborhoods(self, name: str, tokens: Tokens) -> LocalNeighborhoods:
        """Find the neighbourhoods of the tokens of a block; [`_neighborhoods`] does so once in a forward pass."""
        centers = tokens.centers.detach()
        points, ranges = table_points(tokens).detach(), placed_ranges(tokens)
        num_centers, num_neighbors = self._neighborhood_size(self.configs[name], centers.shape[1], points.shape[1])
        center_indices = self.choose_centers(name, points, num_centers)
        local_centers = gather_points(points, center_indices)
        neighbor_indices = self.choose_neighbors(name, local_centers, points, num_neighbors)
        places = torch.cat([torch.arange(*limits, device=points.device) for limits in ranges])
        first_rows = torch.arange(points.shape[0], device=points.device)[:, None] * tokens.features.shape[1]
        return LocalNeighborhoods(
            center_indices,
            neighbor_indices,
            center_rows=(first_rows + places[center_indices]).flatten(),
            # Laid out as the local attention wants it, which would otherwise make a copy in each block.
            neighbor_rows=(first_rows[:, None] + places[neighbor_indices]).flatten(0, 1).t().contiguous().t(),
            weights=self.propagation_weights(name, centers, points, center_indices, ranges[-1][0]),
        )

    def _neighborhood_size(self, config: GeometryOptions, num_groups: int, num_rows: int) -> tuple[int, int]:
        num_centers, num_neighbors = config.num_local_centers, config.num_local_neighbors
        for name, value in (("num_local_centers", num_centers), ("num_local_neighbors", num_neighbors)):
            if value is not None and value > num_rows:
                raise ValueError(
                    f"`{name}`={value} is more than there are tokens: {num_rows} (groups, and inserted tokens with "
                    f"coordinates). Use at most {num_groups}, or leave it out for the default."
                )
        if num_centers is None:
            num_centers = max(num_groups // 2, 1)
        if num_neighbors is None:
            num_neighbors = min(max(self.slot.stage.group_size // 2, 1), num_rows)
        return num_centers, num_neighbors

    def choose_centers(self, name: str, points: torch.Tensor, num_centers: int) -> torch.Tensor:
        """Which tokens are local centres.

        Args:
            name: Name of the adapter.
            points: Places of the tokens, of shape `(batch_size, num_places, 3)`.
            num_centers: How many.

        Returns:
            Indices of shape `(batch_size, num_centers)`.
        """
        return farthest_point_sample(points, num_centers)

    def choose_neighbors(
        self, name: str, centers: torch.Tensor, points: torch.Tensor, num_neighbors: int
    ) -> torch.Tensor:
        """Which tokens are the neighbourhood of each local centre, `(batch_size, num_centers, num_neighbors)`."""
        return knn_indices(centers, points, num_neighbors)

    # -- Aggregation and propagation ----------------------------------------------------------------------------------

    def pool(self, name: str, tokens: Tokens, neighborhoods: LocalNeighborhoods) -> torch.Tensor | None:
        """One feature for each neighbourhood, of shape `(batch_size * num_local_centers, hidden_size)`."""
        rows = neighborhoods.neighbor_rows
        features = tokens.features.flatten(0, 1).to(self.part("pooled_bn", name).weight.dtype)
        attention = self.shared(name, tokens, "local attention", f"{self.key(name)}.local_attention")
        kept = self.drop_path(name, features, rows.shape[0])
        return attention.attend_and_take_maximum(features, rows, kept, tokens.features.shape[0])

    def drop_path(self, name: str, features: torch.Tensor, num_neighborhoods: int) -> torch.Tensor | None:
        """Stochastic depth: a factor for each neighbourhood, as in the published code; `None` for 1."""
        rate = self.configs[name].local_drop_path * self.slot.layer_index / max(self.slot.stage.total_layers - 1, 1)
        if rate == 0.0 or not self.training:
            return None
        return features.new_empty(num_neighborhoods).bernoulli_(1 - rate).div_(1 - rate)

    def _propagate(
        self,
        name: str,
        features: torch.Tensor,
        weights: torch.Tensor,
        neighborhoods: LocalNeighborhoods,
        pooled: torch.Tensor | None,
    ) -> torch.Tensor:
        """Give the features of the neighbourhoods back to the tokens, then the residual bottleneck."""
        config, batch_norm = self.configs[name], self.part("pooled_bn", name)
        if pooled is not None:
            rows = features.flatten(0, 1).to(pooled.dtype)
            center_terms = CENTER_SCALE * F.embedding(neighborhoods.center_rows, rows)
            if config.init_weights != "published":
                # The norm's weight starts at 0: only so a fresh adapter changes nothing.
                center_terms = center_terms * batch_norm.weight
            local = (F.gelu(batch_norm(pooled)) + center_terms).unflatten(0, (features.shape[0], -1))
            features = add_product(features, weights.to(local.dtype), local, config.propagation_scale)
        bottleneck = self.part("output_bottleneck", name)
        return features if bottleneck is None else bottleneck.add_to(features)

    def propagation_weights(
        self, name: str, centers: torch.Tensor, points: torch.Tensor, center_indices: torch.Tensor, num_front: int
    ) -> torch.Tensor:
        """Weights from the local centres to the tokens of a block.

        Args:
            name: Name of the adapter.
            centers: Centres of the patch tokens, of shape `(batch_size, num_groups, 3)`.
            points: Places of all tokens that have one, of shape `(batch_size, num_places, 3)`.
            center_indices: Which of these the local centres are, of shape `(batch_size, num_local_centers)`.
            num_front: Number of tokens in front of the patch tokens; nothing is propagated to them.

        Returns:
            Weights of shape `(batch_size, num_front + num_groups, num_local_centers)`.
        """
        local_centers = gather_points(points, center_indices)
        weights = inverse_distance_weights(centers, local_centers, power=PROPAGATION_POWER, eps=PROPAGATION_EPS)
        return F.pad(weights, (0, 0, num_front, 0))

    def _weights(self, name: str, tokens: Tokens, neighborhoods: LocalNeighborhoods) -> torch.Tensor:
        """The propagation weights, differentiable with respect to the places of tokens."""
        places = [span.coordinates for span in tokens.spans if span.coordinates is not None]
        if not (torch.is_grad_enabled() and any(place.requires_grad for place in places)):
            return neighborhoods.weights
        num_front = neighborhoods.weights.shape[1] - tokens.num_patches

        def compute(*places: torch.Tensor) -> torch.Tensor:
            points = _table(places)
            return self.propagation_weights(name, places[-1], points, neighborhoods.center_indices, num_front)

        # Not once for all blocks with its graph: gradient checkpointing goes backward through every block on its own,
        # so blocks must not share a part of the graph.
        return with_known_value(neighborhoods.weights, compute, *places)

    # -- To be looked at ----------------------------------------------------------------------------------------------

    def explain(self, name: str, result: Tokens, *inputs: Tokens) -> Iterator[Picture]:
        """Show the local centres, and how far the patch tokens are from them."""
        indices, points = self._neighborhoods(name, result).center_indices[0], table_points(result)[0]
        is_inserted = indices < len(points) - result.num_patches
        local, centers = points[indices], result.centers[0]
        yield Picture(
            "distance of the token to its nearest local centre",
            [
                Places("local centre", local[~is_inserted]),
                Places("local centre that is an inserted token", local[is_inserted], on_top=True),
            ],
            values=torch.cdist(centers, local).amin(dim=1),
            coordinates=centers,
            unit="cloud radius = 1",
        )


def table_points(tokens: Tokens) -> torch.Tensor:
    """Places of the tokens that have one, of shape `(batch_size, num_places, 3)`; the patch tokens come last."""
    return _table([span.coordinates for span in tokens.spans if span.coordinates is not None])


def _table(places: list[torch.Tensor] | tuple[torch.Tensor, ...]) -> torch.Tensor:
    centers = places[-1]
    if len(places) == 1:
        return centers
    front = [place.to(centers.dtype).expand(centers.shape[0], -1, -1) for place in places[:-1]]
    return torch.cat([*front, centers], dim=1)


def placed_ranges(tokens: Tokens) -> list[tuple[int, int]]:
    """Where the tokens with a place are in the sequence; the patch tokens come last."""
    return [(start, stop) for span, start, stop in tokens.ranges() if span.coordinates is not None]


def create_bottleneck(config: GeometryOptions, hidden_size: int, slot_name: str) -> Bottleneck:
    """Create and initialise a bottleneck of the width that is configured for a slot."""
    width = bottleneck_size(config, slot_name, config.bottleneck_size)
    return Bottleneck(hidden_size, width, config.dropout, config.init_weights)
