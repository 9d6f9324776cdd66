"""Learned keys and values for the attention within patches of a scene encoder."""

from __future__ import annotations

from ..base import SlotTuner
from ..registry import register_method
from .config import PatchPromptConfig
from .layer import PatchPromptLayer


@register_method("patch_prompt", PatchPromptConfig)
class PatchPromptModel(SlotTuner):
    """Adds learned keys and values to the attention of each block of a scene encoder.

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import (
        ...     PatchPromptConfig, PointTransformerV3Config, PointTransformerV3ForSemanticSegmentation
        ... )
        >>> backbone = PointTransformerV3ForSemanticSegmentation(PointTransformerV3Config(num_labels=13))
        >>> model = get_peft_model(backbone, PatchPromptConfig())
    """

    layer_classes = (PatchPromptLayer,)
