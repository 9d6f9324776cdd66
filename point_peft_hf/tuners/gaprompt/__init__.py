"""GAPrompt: prompts that know the shape of the cloud, and points that move (arXiv 2505.04119)."""

from __future__ import annotations

from torch import nn

from ...slots import ReadoutSlot
from ..base import SlotTuner
from ..registry import register_method
from ..selection import check_prompted
from .config import GAPromptConfig
from .layer import EndLayer, PromptLayer, ShapeReadout, StageLayer
from .published import read_published
from .shift import PointLayer


@register_method("gaprompt", GAPromptConfig)
class GAPromptModel(SlotTuner):
    """Adds GAPrompt to a backbone (arXiv 2505.04119).

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import GAPromptConfig, PointMAEConfig, PointMAEForClassification
        >>> model = get_peft_model(PointMAEForClassification(PointMAEConfig(num_labels=15)), GAPromptConfig())
    """

    read_published = staticmethod(read_published)
    layer_classes = (PointLayer, StageLayer, PromptLayer, EndLayer, ShapeReadout)

    def _prepare_model(self, peft_config: GAPromptConfig, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        stages = {slot.stage.index: slot.stage for slot in self._slots.values()}.values()
        check_prompted(peft_config, [block for stage in stages for block in peft_config.prompted_blocks(stage)])

    def readout_size(self, peft_config: GAPromptConfig, slot: ReadoutSlot) -> int:
        """Width of the pooled features and the shape vector."""
        return slot.hidden_size + slot.stage.hidden_size
