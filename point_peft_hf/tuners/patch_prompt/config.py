"""Configuration of patch prompts."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import PointTunerConfig, option


@dataclass
class PatchPromptConfig(PointTunerConfig):
    """Configuration of prompts for the attention of a scene encoder (type PATCH_PROMPT).

    Each block has learned keys and values that the voxels of every patch attend to, besides those of their patch. The
    attention to them has a softmax of its own and a gate for each head, which starts at 0 (zero-initialised attention,
    arXiv 2303.16199), so that a fresh adapter changes nothing.

    Args:
        num_prompt_tokens: Keys, and values, of a block.

    Raises:
        ValueError: If a value does not fit, with the name of the field and the value got.
    """

    num_prompt_tokens: int = option(8, "Prompts of a block.", at_least=1)

    card_text = "Patch prompts: learned keys and values for all patches, gated (arXiv 2303.16199)"
    card_fields = ("num_prompt_tokens",)
