"""Layers of STAG (arXiv 2502.14142)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ...layers import recompute_in_backward
from ...ops import gather_points, knn_indices
from ...slots import AdapterSlot, Backbone, EntrySlot, OutputSlot, ReadoutSlot, TokenSlot
from ...tokens import Tokens
from ..explain import Picture
from ..slot_layer import SlotLayer
from .config import Plan, STAGConfig


class SideState(NamedTuple):
    """What the side network carries from block to block.

    Attributes:
        residual: What the last graph convolution left, of shape `(batch_size, num_groups, rank)`; `None` before the
            first.
        sums: By projection, the tokens that have been read since, added up, of shape
            `(batch_size, num_groups, hidden_size)`, and how many there are. A projection of a sum is the sum of the
            projections: so in front of the first graph convolution no block leaves anything for the backward pass.
    """

    residual: torch.Tensor | None
    sums: Mapping[int, tuple[torch.Tensor, int]]


class SideNetwork(nn.Module):
    """The weights that the blocks share: projections of tokens, and graph convolutions."""

    def __init__(self, hidden_size: int, rank: int, plan: Plan):
        super().__init__()
        self.plan = plan
        num_down, num_graph = len(set(plan.accumulation.values())), len(set(plan.graph.values()))
        self._linear("down", num_down, hidden_size, rank)
        self._linear("center", num_graph, rank, rank)
        self._linear("neighbor", num_graph, rank, rank)
        self._linear("mix", num_graph, rank, rank)
        self._linear("up", num_graph, rank, hidden_size)

    def _linear(self, name: str, count: int, in_size: int, out_size: int) -> None:
        bound = 1 / math.sqrt(in_size)
        for kind, shape in (("weight", (count, out_size, in_size)), ("bias", (count, out_size))):
            self.register_parameter(f"{name}_{kind}", nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def read(self, block: int, state: SideState, patches: torch.Tensor) -> SideState:
        """Add patch tokens of shape `(batch_size, num_groups, hidden_size)` to those that were read."""
        index = _place(self.plan.accumulation, block)
        total, count = state.sums.get(index, (None, 0))
        total = patches if total is None else total + patches
        return state._replace(sums={**state.sums, index: (total, count + 1)})

    def convolve(self, block: int, state: SideState, neighbors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Convolve over neighbouring tokens.

        Args:
            block: Number of the block.
            state: The state.
            neighbors: Neighbours of each token, of shape `(batch_size, num_groups, num_neighbors)`.

        Returns:
            The new residual, of shape `(batch_size, num_groups, rank)`, and what to add to the patch tokens, of shape
            `(batch_size, num_groups, hidden_size)`.
        """
        graph, counts = _place(self.plan.graph, block), {index: count for index, (_, count) in state.sums.items()}

        def run(residual: torch.Tensor | None, neighbors: torch.Tensor, *sums: torch.Tensor):
            for (index, count), total in zip(counts.items(), sums, strict=True):
                read = F.linear(total, self.down_weight[index], self.down_bias[index] * count)
                residual = read if residual is None else residual + read
            # The centre's term is the same for all neighbours, so it need not take part in the maximum.
            center = F.linear(residual, self.center_weight[graph], self.center_bias[graph] + self.neighbor_bias[graph])
            around = gather_points(F.linear(residual, self.neighbor_weight[graph]), neighbors)  # (B, G, K, rank)
            residual = F.linear(center + around.amax(dim=2), self.mix_weight[graph], self.mix_bias[graph])
            return residual, F.relu(F.linear(residual, self.up_weight[graph], self.up_bias[graph]))

        # Small next to a block, and it would keep several tensors of the size of the tokens.
        return recompute_in_backward(run, state.residual, neighbors, *(total for total, _ in state.sums.values()))


def _place(blocks: Mapping[int, int], block: int) -> int:
    """Which of the weights in use a block has."""
    return sorted(set(blocks.values())).index(blocks[block])


class SideNetworkLayer(SlotLayer):
    """Around a [`~point_peft_hf.slots.TokenSlot`]: shares the side network with the blocks."""

    slot_class = TokenSlot
    serves = (OutputSlot,)
    parts = ("side_network",)

    @classmethod
    def wants(cls, config: STAGConfig, slot: AdapterSlot) -> bool:
        """Whether it is in front of the last stage."""
        return slot.stage.is_last

    def create_parts(self, adapter_name: str, config: STAGConfig, slot_name: str) -> dict[str, nn.Module]:
        """Create the side network, as published whatever `init_weights` is: there is no function to preserve."""
        return {"side_network": SideNetwork(self.slot.hidden_size, config.rank, config.plan(self.slot.stage))}

    def adapt(self, name: str, tokens: Tokens, backbone: Backbone) -> Tokens:
        """Share it."""
        return tokens.sharing(self.key(name), self.part("side_network", name))


class AccumulationLayer(SlotLayer):
    """At the start of a block: reads the patch tokens."""

    slot_class = EntrySlot
    only_reads = True

    @classmethod
    def wants(cls, config: STAGConfig, slot: AdapterSlot) -> bool:
        """Whether the block is read."""
        return slot.stage.is_last and slot.layer_index in config.plan(slot.stage).accumulation

    def adapt(self, name: str, tokens: Tokens) -> Tokens:
        """Add the tokens to those that were read."""
        key = self.key(name)
        state = tokens.carry.get(key, SideState(None, {}))
        return tokens.carrying(key, tokens.cloud.shared[key].read(self.slot.layer_index, state, tokens.patches))


class GraphLayer(SlotLayer):
    """At the end of a block: a graph convolution of the state, and what it adds to the tokens."""

    slot_class = OutputSlot

    @classmethod
    def wants(cls, config: STAGConfig, slot: AdapterSlot) -> bool:
        """Whether the block has one."""
        return slot.stage.is_last and slot.layer_index in config.plan(slot.stage).graph

    def adapt(self, name: str, tokens: Tokens) -> Tokens:
        """Convolve, and change patch tokens, and the class token by the mean of what is added to them."""
        key = self.key(name)
        network, state = tokens.cloud.shared[key], tokens.carry[key]
        neighbors = tokens.cloud.memo.once(f"{key}.neighbors", lambda: self.find_neighbors(name, tokens))
        residual, update = network.convolve(self.slot.layer_index, state, neighbors)
        tokens = tokens.carrying(key, SideState(residual, {})).add_to("patch", update)
        return tokens.add_to("class", update.mean(dim=1, keepdim=True))

    def find_neighbors(self, name: str, tokens: Tokens) -> torch.Tensor:
        """Neighbours of each patch token, of shape `(batch_size, num_groups, num_neighbors)`, itself included."""
        count, centers = self.configs[name].num_neighbors, tokens.centers.detach()
        if count > centers.shape[1]:
            raise ValueError(
                f"`num_neighbors`={count} is more than the {centers.shape[1]} tokens of the stage. Use at most that."
            )
        return knn_indices(centers, centers, count)

    def explain(self, name: str, result: Tokens, *inputs: Tokens) -> Iterator[Picture]:
        """Show how far the patch tokens were moved."""
        moved = (result.patches - inputs[0].patches).norm(dim=-1)
        yield Picture("what the side network adds to the token", values=moved[0], coordinates=result.centers[0])


class MeanReadout(SlotLayer):
    """In front of a classification head: the mean over all tokens, without the final norm."""

    slot_class = ReadoutSlot
    serves = (OutputSlot,)

    @classmethod
    def wants(cls, config: STAGConfig, slot: AdapterSlot) -> bool:
        """Whether a head reads it."""
        return slot.kind == "cloud" and slot.is_read

    def adapt(self, name: str, pooled: torch.Tensor, tokens: Tokens, levels: tuple[Tokens, ...]) -> torch.Tensor:
        """Return features of shape `(batch_size, hidden_size)`."""
        return tokens.own().mean(dim=1)
