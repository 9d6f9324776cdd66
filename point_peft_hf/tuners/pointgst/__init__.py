"""PointGST: adapters in the spectral domain of a graph of the tokens (arXiv 2410.08114)."""

from __future__ import annotations

from ..base import SlotTuner
from ..registry import register_method
from .config import PointGSTConfig
from .layer import PointGSTLayer
from .published import read_published


@register_method("pointgst", PointGSTConfig)
class PointGSTModel(SlotTuner):
    """Adds PointGST to a backbone (arXiv 2410.08114).

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import PointGSTConfig, PointMAEConfig, PointMAEForClassification
        >>> model = get_peft_model(PointMAEForClassification(PointMAEConfig(num_labels=15)), PointGSTConfig())
    """

    read_published = staticmethod(read_published)
    layer_classes = (PointGSTLayer,)
