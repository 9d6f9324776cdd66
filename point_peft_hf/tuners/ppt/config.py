"""Configuration of PPT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import PointTunerConfig, option


@dataclass
class PPTConfig(PointTunerConfig):
    """Configuration of PPT, Positional Prompt Tuning (arXiv 2408.11567; type PPT).

    A second set of groups is embedded by the backbone itself, and its tokens join the attention of all blocks as
    prompts. Three small networks, each one for all blocks, add to the patch tokens and to the prompts at the start of
    a block, and to all tokens parallel to the feed-forward network. The first half of the patch embedding and the
    position embedding are trained as well; they are in the adapter's file. The head reads class token and the means
    over patch tokens and prompts.

    The defaults are the published values, the same for ScanObjectNN and ModelNet40: the prompts are as many groups,
    and as large, as those of the backbone. Since centres are sampled from the first point on, they are the same
    groups, so the tokens are the same but for what the networks add, at twice the length of the sequence. Other sizes
    give prompts that know something else of the cloud. [`for_shapenetpart`] has the values for part segmentation.

    Prompts take part in the attention, so a fresh adapter changes the function. In a backbone of several stages the
    prompts are in the first one, whose groups consist of points; the networks are in all of them, and the head reads
    the mean over the patch tokens of the last one. In part segmentation the head reads maximum and mean over both sets
    of tokens.

    Args:
        num_prompt_groups: Number of groups of the second set; default: as many as the backbone has.
        prompt_group_size: Points of such a group; default: as many as in those of the backbone.
        bottleneck_size: Width inside of the networks.
        head_activation: Activation in the head: "gelu" as published, or "relu" as in the heads of the backbones.
        shifted_rows: The two networks at the start of a block act one row further on than they should, as in the
            published part segmentation, which counts a class token that is not there: the first patch token gets
            nothing, and the first prompt what is for patches, too. Checkpoints from it need that. The second set must
            be as large as the first.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    num_prompt_groups: int | None = option(None, "Groups of the second set.", at_least=1)
    prompt_group_size: int | None = option(None, "Points of such a group.", at_least=1)
    bottleneck_size: int = option(256, "Width inside of the networks.", at_least=1)
    head_activation: str = option("gelu", "Activation in the head: 'gelu' or 'relu'.", choices=("gelu", "relu"))
    shifted_rows: bool = option(False, "Rows as in the published part segmentation.")

    card_text = "PPT (arXiv 2408.11567): a second set of tokens as prompts, and networks that all blocks share"
    card_fields = ("num_prompt_groups", "prompt_group_size", "bottleneck_size")

    @classmethod
    def for_shapenetpart(cls, **fields: Any) -> PPTConfig:
        """The published values for part segmentation on ShapeNetPart.

        Args:
            **fields: Fields that are to have other values.
        """
        return cls(**{"bottleneck_size": 128, **fields})
