"""IDPT: a prompt that is generated from the tokens of each cloud (arXiv 2304.07221)."""

from __future__ import annotations

from ...slots import ReadoutSlot
from ..base import SlotTuner
from ..registry import register_method
from .config import IDPTConfig
from .layer import GeneratedLayer, PositionLayer, PromptLayer, ReadoutLayer, readout_size
from .published import read_published


@register_method("idpt", IDPTConfig)
class IDPTModel(SlotTuner):
    """Adds IDPT to a backbone (arXiv 2304.07221).

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import IDPTConfig, PointMAEConfig, PointMAEForClassification
        >>> model = get_peft_model(PointMAEForClassification(PointMAEConfig(num_labels=15)), IDPTConfig())
    """

    layer_classes = (PositionLayer, PromptLayer, GeneratedLayer, ReadoutLayer)
    read_published = staticmethod(read_published)

    def readout_size(self, peft_config: IDPTConfig, slot: ReadoutSlot) -> int:
        """See [`~point_peft_hf.tuners.idpt.layer.readout_size`]."""
        return readout_size(peft_config, slot)
