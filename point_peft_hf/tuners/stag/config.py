"""Configuration of STAG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...slots import Stage
from ..config import PointTunerConfig, option

# By variant: the share of the blocks in front of the first graph convolution, and, for those and for accumulation, the
# share of the blocks that have one set of weights in common.
_VARIANTS = {"std": (1 / 2, 1 / 2, 1), "sl": (1 / 4, 1 / 4, 1 / 4)}


class Plan(NamedTuple):
    """Which blocks of a stage do what, with which weights.

    Attributes:
        accumulation: By number of the block, which of the projections reads its input.
        graph: By number of the block, which of the graph convolutions follows it.
    """

    accumulation: dict[int, int]
    graph: dict[int, int]


@dataclass
class STAGConfig(PointTunerConfig):
    """Configuration of STAG, a side network on the graph of the tokens (arXiv 2502.14142; type STAG).

    The tokens that enter the blocks are projected and added up; from the first block of `graph_layers` on, a graph
    convolution mixes the sum over neighbouring tokens, and what it gives is added to the tokens. Nothing in front of
    that block needs a backward pass, as long as nothing there is trained: so the class token is saved with the
    adapter, but not trained. The head reads the mean over all tokens, without the final norm, so every STAG adapter
    has a head of its own, and there is no function of the backbone for a fresh one to preserve: it always starts as
    published. In part segmentation, which is not published, the head of the backbone reads the changed tokens.

    On a backbone of several stages it works in the last one: the state of the side network belongs to its tokens.

    The defaults are the published values for all data sets.

    Args:
        variant: What the fields left out are for a backbone of any depth. "std": graph convolutions in the second half
            of the blocks, one set of weights. "sl" (shared locally): in the last three quarters, a set of weights for
            each quarter.
        rank: Width of the side network.
        num_neighbors: Neighbours of a token in the graph, itself included.
        accumulation_layers: Numbers of the blocks whose input is read; default: all.
        graph_layers: Numbers of the blocks with a graph convolution at their end; default: as the variant.
        accumulation_sharing: How many blocks in a row, counted from the first, share a projection.
        graph_sharing: How many blocks in a row, counted from the first graph convolution, share its weights.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    variant: str = option("std", "'std' or 'sl': what the other fields are by default.", choices=tuple(_VARIANTS))
    rank: int = option(192, "Width of the side network.", at_least=1)
    num_neighbors: int = option(8, "Neighbours in the graph of the tokens.", at_least=1)
    accumulation_layers: list[int] | None = option(None, "Blocks that are read.")
    graph_layers: list[int] | None = option(None, "Blocks with a graph convolution.")
    accumulation_sharing: int | None = option(None, "Blocks that share a projection.", at_least=1)
    graph_sharing: int | None = option(None, "Blocks that share a graph convolution.", at_least=1)

    card_text = "STAG (arXiv 2502.14142): a side network on the graph of the tokens"
    card_fields = ("variant", "rank", "num_neighbors")

    def __post_init__(self):
        super().__post_init__()
        for name in ("accumulation_layers", "graph_layers"):
            if getattr(self, name) is not None:
                if not getattr(self, name):
                    raise ValueError(f"`{name}` must name at least one block, got {getattr(self, name)!r}.")
                setattr(self, name, sorted(set(getattr(self, name))))

    def plan(self, stage: Stage) -> Plan:
        """Which blocks of a stage do what.

        Args:
            stage: The last stage of a backbone.

        Raises:
            ValueError: If a block does not exist, or if a graph convolution would have nothing to work on.
        """
        first, depth = stage.first_layer, stage.num_layers
        front, graph_share, accumulation_share = _VARIANTS[self.variant]
        graph = self.graph_layers or list(stage.layers)[int(depth * front) :]
        accumulation = self.accumulation_layers or list(stage.layers)
        for name, numbers in (("graph_layers", graph), ("accumulation_layers", accumulation)):
            if wrong := [number for number in numbers if number not in stage.layers]:
                raise ValueError(
                    f"`{name}` has {wrong}, but the side network can be at the blocks {stage.layers.start} to "
                    f"{stage.layers.stop - 1} of this backbone."
                )
        graph_sharing = self.graph_sharing or max(int(depth * graph_share), 1)
        accumulation_sharing = self.accumulation_sharing or max(int(depth * accumulation_share), 1)
        chosen = self.layers_to_transform
        chosen = stage.layers if chosen is None else [chosen] if isinstance(chosen, int) else chosen
        convolved = {number: (number - graph[0]) // graph_sharing for number in graph if number in chosen}
        if not convolved:
            raise ValueError(
                f"`layers_to_transform`={self.layers_to_transform!r} leaves no block with a graph convolution: with "
                f"this configuration the method attaches to the blocks {graph}."
            )
        read = {
            number: (number - first) // accumulation_sharing
            for number in accumulation
            # What is read after the last graph convolution reaches nothing.
            if number in chosen and number <= max(convolved)
        }
        if min(read, default=stage.layers.stop) > min(convolved):
            raise ValueError(
                f"The first graph convolution, at block {min(convolved)}, has nothing to work on: "
                f"`accumulation_layers` must have a block up to that one, got {accumulation}."
            )
        return Plan(read, convolved)
