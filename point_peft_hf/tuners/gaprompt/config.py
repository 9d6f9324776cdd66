"""Configuration of GAPrompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...slots import Stage
from ..config import PointTunerConfig


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

    num_points: int = field(default=5, metadata={"help": "Points that join the cloud."})
    point_scale: float = field(default=5.0, metadata={"help": "Factor of their coordinates."})
    shift_scale: float = field(default=0.8, metadata={"help": "Factor of the shift of points."})
    num_point_neighbors: int = field(default=32, metadata={"help": "Groups that a point takes features from."})
    num_center_neighbors: int = field(default=32, metadata={"help": "Coarse groups that a group takes features from."})
    num_prompt_tokens: int = field(default=10, metadata={"help": "Prompt tokens in a block."})
    prompt_depth: int | None = field(default=6, metadata={"help": "Blocks with prompts; None: all."})
    shape_scale: float = field(default=0.5, metadata={"help": "Factor of the shape vector in tokens."})
    propagation: str = field(default="aligned", metadata={"help": "'aligned', 'shifted' or 'replacement'."})
    propagation_place: str = field(default="after", metadata={"help": "'before' or 'after' a block."})
    propagation_scale: float = field(default=0.3, metadata={"help": "Factor of the propagated features."})
    num_propagation_neighbors: int = field(default=64, metadata={"help": "Groups that a token takes features from."})
    bottleneck_size: int = field(default=16, metadata={"help": "Width of the bottlenecks."})
    bottleneck_scale: float = field(default=0.7, metadata={"help": "Factor of the bottlenecks."})
    dropout: float = field(default=0.1, metadata={"help": "Dropout on prompts and inside of the bottlenecks."})
    shift_dropout: float = field(default=0.2, metadata={"help": "Dropout in the network that moves points."})
    shape_dropout: float = field(default=0.25, metadata={"help": "Dropout in front of the shape vector."})
    local_drop_path: float = field(default=0.1, metadata={"help": "Stochastic depth of the local groups."})

    card_text = "GAPrompt (arXiv 2505.04119): moved and added points, prompts with the shape of the cloud"
    card_fields = ("num_points", "num_prompt_tokens", "bottleneck_size")

    def __post_init__(self):
        super().__post_init__()
        counts = ("num_points", "num_point_neighbors", "num_center_neighbors", "num_prompt_tokens")
        for name in (*counts, "num_propagation_neighbors", "bottleneck_size"):
            self._check_at_least(name, getattr(self, name), 1)
        if self.prompt_depth is not None:
            self._check_at_least("prompt_depth", self.prompt_depth, 1)
        for name in ("point_scale", "shift_scale", "shape_scale", "propagation_scale", "bottleneck_scale"):
            self._check_at_least(name, getattr(self, name), 0)
        self._check_rates("dropout", "shift_dropout", "shape_dropout", "local_drop_path")
        self._check_choice("propagation", ("aligned", "shifted", "replacement"))
        self._check_choice("propagation_place", ("before", "after"))

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
