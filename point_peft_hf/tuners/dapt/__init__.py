"""DAPT: dynamic adapters and prompts made of what they add (arXiv 2403.01439)."""

from __future__ import annotations

from ...slots import ReadoutSlot
from ...tokens import CLASS
from ..base import SlotTuner
from ..registry import register_method
from .config import DAPTConfig
from .layer import FeedForwardLayer, PositionLayer, PromptLayer, ReadoutLayer, ScaleShiftLayer, readout_parts
from .published import read_published


@register_method("dapt", DAPTConfig)
class DAPTModel(SlotTuner):
    """Adds DAPT to a backbone (arXiv 2403.01439).

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import DAPTConfig, PointMAEConfig, PointMAEForClassification
        >>> model = get_peft_model(PointMAEForClassification(PointMAEConfig(num_labels=15)), DAPTConfig())
    """

    layer_classes = (ScaleShiftLayer, PositionLayer, FeedForwardLayer, PromptLayer, ReadoutLayer)
    read_published = staticmethod(read_published)

    def readout_size(self, peft_config: DAPTConfig, slot: ReadoutSlot) -> int:
        """Width of what the head reads: that of the tokens for each class token and each other part."""
        counts = [slot.stage.num_class if owner == CLASS else 1 for owner, _ in readout_parts(peft_config, slot)]
        size = sum(counts) * slot.stage.hidden_size
        return slot.hidden_size + size if slot.kind == "points" else size
