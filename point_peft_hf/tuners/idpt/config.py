"""Configuration of IDPT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import PointTunerConfig, option


@dataclass
class IDPTConfig(PointTunerConfig):
    """Configuration of IDPT, Instance-aware Dynamic Prompt Tuning (arXiv 2304.07221; type IDPT).

    In front of one block, late in the backbone, a small graph network makes one prompt token of the patch tokens of
    each cloud. It joins the attention of that block and all that follow, and the head reads it next to class token and
    patch tokens.

    The defaults are the published values for ScanObjectNN PB_T50_RS and for ModelNet40. OBJ_ONLY has
    `prompt_layers=[6]`, OBJ_BG `class_token=False, patch_pooling=None` (the head reads the prompt alone).
    [`for_shapenetpart`] has those for part segmentation.

    The prompt takes part in the attention, so a fresh adapter changes the function. In a backbone of several stages it
    belongs to the last one, whose tokens the head reads. In part segmentation the head gets the prompts in addition to
    its own summary of the cloud, or with `patch_pooling=None` in place of it.

    Args:
        prompt_layers: Numbers of the blocks that a prompt is made in front of; default: the last block (published: 11
            of 0 to 11).
        generator: What makes the prompt. "graph": three convolutions over the nearest tokens in feature space, and a
            layer on all of their results; "light": one layer on the tokens. Then the maximum over the tokens.
        num_neighbors: Neighbours of a token in the graph, itself included; all tokens where there are fewer.
        keep_prompts: Whether the prompt stays until the last block, or leaves after one block.
        train_prompt_position: Whether the position embedding of prompts is trained. In the published code it stays at
            its random start in classification; it is in the adapter's file in any case.
        class_token: Whether the head reads the class token, where the backbone has one.
        prompt_token: Whether the head reads the prompt. In part segmentation with `keep_prompts=False` it reads each
            prompt twice, as it was made and as it left its block, so its block has to be one of those whose tokens the
            head reads.
        patch_pooling: How the head reads the patch tokens: "max", "mean", or `None` for not at all. In part
            segmentation other values than `None` all mean the head's own summary.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    prompt_layers: list[int] | None = option(None, "Blocks with a prompt; None: the last.")
    generator: str = option("graph", "What makes prompts: 'graph' or 'light'.", choices=("graph", "light"))
    num_neighbors: int = option(20, "Neighbours of a token in the graph.", at_least=1)
    keep_prompts: bool = option(True, "Whether the prompt stays until the last block.")
    train_prompt_position: bool = option(True, "Train the prompt's position embedding.")
    class_token: bool = option(True, "Whether the head reads the class token.")
    prompt_token: bool = option(True, "Whether the head reads the prompt.")
    patch_pooling: str | None = option("max", "Patches in the head: max, mean or None.", choices=("mean", "max", None))

    card_text = "IDPT (arXiv 2304.07221): a prompt that is generated from the tokens of each cloud"
    card_fields = ("prompt_layers", "generator", "num_neighbors")

    def __post_init__(self):
        super().__post_init__()
        if self.prompt_layers is not None:
            if not self.prompt_layers or len(set(self.prompt_layers)) != len(self.prompt_layers):
                raise ValueError(
                    f"`prompt_layers` must be numbers of blocks, each once, got {self.prompt_layers!r}. Leave it out "
                    "for the last block."
                )
            for layer in self.prompt_layers:
                self._check_at_least("prompt_layers", layer, 0)
            if self.keep_prompts and len(self.prompt_layers) > 1:
                raise ValueError(
                    f"`prompt_layers`={self.prompt_layers} and `keep_prompts`=True: a prompt that stays is made in "
                    "front of one block only. Name one block, or set `keep_prompts=False`."
                )
        self._check_reads("class_token", "prompt_token", "patch_pooling")

    @classmethod
    def for_shapenetpart(cls, **fields: Any) -> IDPTConfig:
        """The published values for part segmentation on ShapeNetPart, for a backbone of 12 blocks.

        Args:
            **fields: Fields that are to have other values.
        """
        published = {
            "prompt_layers": [3, 7, 11],
            "generator": "light",
            "keep_prompts": False,
            "class_token": False,
            "patch_pooling": None,
        }
        return cls(**{**published, **fields})
