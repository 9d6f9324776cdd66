"""PPT: a second set of tokens, and networks that all blocks share (arXiv 2408.11567)."""

from __future__ import annotations

from torch import nn

from ...slots import ReadoutSlot
from ..base import SlotTuner
from ..registry import register_method
from .config import PPTConfig
from .layer import EntryLayer, FeedForwardLayer, ReadoutLayer, SharedLayer, readout_size
from .published import read_published


@register_method("ppt", PPTConfig)
class PPTModel(SlotTuner):
    """Adds PPT to a backbone (arXiv 2408.11567).

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import PointMAEConfig, PointMAEForClassification, PPTConfig
        >>> model = get_peft_model(PointMAEForClassification(PointMAEConfig(num_labels=15)), PPTConfig())
    """

    layer_classes = (SharedLayer, EntryLayer, FeedForwardLayer, ReadoutLayer)
    read_published = staticmethod(read_published)
    trains_embedding = True

    def readout_size(self, peft_config: PPTConfig, slot: ReadoutSlot) -> int:
        """See [`~point_peft_hf.tuners.ppt.layer.readout_size`]."""
        return readout_size(slot)

    def build_head(self, model: nn.Module, peft_config: PPTConfig, in_size: int) -> nn.Module:
        """A new head, with the configured activation where it is one for classification."""
        head = super().build_head(model, peft_config, in_size)
        if hasattr(head, "activation"):
            head.activation = nn.GELU() if peft_config.head_activation == "gelu" else nn.ReLU()
        return head
