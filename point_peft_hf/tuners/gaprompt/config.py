"""Configuration of GAPrompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...slots import Stage
from ..config import PointTunerConfig, option


@dataclass
class GAPromptConfig(PointTunerConfig):
    """Configuration of GAPrompt (arXiv 2505.04119; type GAPROMPT).

    A small network looks at the whole cloud: it moves every point, and makes a shape vector of the cloud. Further
    points join the cloud before it is grouped. Prompt tokens that know the shape join the first blocks; at the end of
    every block, features of local groups of tokens are propagated, and a bottleneck follows, which in the first blocks
    knows the shape as well. The head reads the shape vector, too, so every GAPrompt adapter has a head of its own, and
    there is no function of the backbone for a fresh one to preserve: it always starts as published.

    On a backbone of several stages the network looks at as many groups as the last stage has; prompts, groups of
    tokens and bottlenecks are in each stage. In part segmentation, which is not published, the head of the backbone
    reads the changed tokens; the scores are those of the points that were passed in.

    The defaults are those published for PB_T50_RS of ScanObjectNN. Published for OBJ_BG: `num_points=10,
    shift_scale=0.2, propagation_place="before"`; for OBJ_ONLY: `num_points=10, shift_scale=0.1`.

    Args:
        num_points: Points that join the cloud.
        point_scale: Factor of their coordinates.
        shift_scale: Factor of the shift of a point, which is a share of its coordinates.
        num_point_neighbors: Groups that features are interpolated from to the points.
        num_center_neighbors: Groups of the coarser level that features are interpolated from to those of the finer.
        num_prompt_tokens: Prompt tokens in a block.
        prompt_depth: Number of blocks with prompts, and a bottleneck that knows the shape, counted from the first;
            `None` for all.
        shape_scale: Factor of the shape vector in prompts and bottlenecks.
        propagation: Which tokens a local group consists of. "aligned": the nearest. "shifted": what stands as many
            rows further to the front as there are prompts; so the published "permutation" does for a cloud alone, and
            in a batch it reads other clouds. "replacement": the last patch tokens give their rows to the prompts, as
            published under this name.
        propagation_place: "after" the block or "before" it.
        propagation_scale: Factor of what the groups give back to the tokens.
        num_propagation_neighbors: Groups that a token takes features from.
        bottleneck_size: Width of the bottlenecks.
        bottleneck_scale: Factor of what the bottlenecks add.
        dropout: Dropout on prompts and inside of the bottlenecks.
        shift_dropout: Dropout in front of the last layer that makes the shifts.
        shape_dropout: Dropout in front of the last layer that makes the shape vector.
        local_drop_path: Rate, in the last block, with which a group counts once, or more than twice, instead of twice;
            it grows linearly from 0 at the first. In evaluation a group counts twice.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    num_points: int = option(5, "Points that join the cloud.", at_least=1)
    point_scale: float = option(5.0, "Factor of their coordinates.", at_least=0)
    shift_scale: float = option(0.8, "Factor of the shift of points.", at_least=0)
    num_point_neighbors: int = option(32, "Groups that a point takes features from.", at_least=1)
    num_center_neighbors: int = option(32, "Coarse groups that a group takes features from.", at_least=1)
    num_prompt_tokens: int = option(10, "Prompt tokens in a block.", at_least=1)
    prompt_depth: int | None = option(6, "Blocks with prompts; None: all.", at_least=1)
    shape_scale: float = option(0.5, "Factor of the shape vector in tokens.", at_least=0)
    propagation: str = option(
        "aligned", "'aligned', 'shifted' or 'replacement'.", choices=("aligned", "shifted", "replacement")
    )
    propagation_place: str = option("after", "'before' or 'after' a block.", choices=("before", "after"))
    propagation_scale: float = option(0.3, "Factor of the propagated features.", at_least=0)
    num_propagation_neighbors: int = option(64, "Groups that a token takes features from.", at_least=1)
    bottleneck_size: int = option(16, "Width of the bottlenecks.", at_least=1)
    bottleneck_scale: float = option(0.7, "Factor of the bottlenecks.", at_least=0)
    dropout: float = option(0.1, "Dropout on prompts and inside of the bottlenecks.", is_rate=True)
    shift_dropout: float = option(0.2, "Dropout in the network that moves points.", is_rate=True)
    shape_dropout: float = option(0.25, "Dropout in front of the shape vector.", is_rate=True)
    local_drop_path: float = option(0.1, "Stochastic depth of the local groups.", is_rate=True)

    card_text = "GAPrompt (arXiv 2505.04119): moved and added points, prompts with the shape of the cloud"
    card_fields = ("num_points", "num_prompt_tokens", "bottleneck_size")

    @classmethod
    def for_modelnet40(cls, **fields: Any) -> GAPromptConfig:
        """The configuration published for ModelNet40.

        Args:
            **fields: Fields that are to be other than published.
        """
        return cls(**{"shift_scale": 0.05, **fields})

    def has_prompts(self, block: int) -> bool:
        """Whether prompts join a block, given by its number, and its bottleneck knows the shape."""
        return self.prompt_depth is None or block < self.prompt_depth

    def prompted_blocks(self, stage: Stage) -> list[int]:
        """Numbers of the blocks of a stage that prompts join."""
        chosen = self.layers_to_transform
        chosen = stage.layers if chosen is None else [chosen] if isinstance(chosen, int) else chosen
        return [block for block in stage.layers if block in chosen and self.has_prompts(block)]
