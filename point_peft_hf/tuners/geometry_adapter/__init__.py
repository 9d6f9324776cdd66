"""Geometry-aware Adapter: attention in local groups of tokens (Point-PEFT, arXiv 2310.03059)."""

from __future__ import annotations

from ..base import SlotTuner
from ..registry import register_method
from .config import GeometryAdapterConfig
from .layer import FeedForwardLayer, OutputLayer, SharedAttentionLayer

GEOMETRY_LAYERS = (SharedAttentionLayer, FeedForwardLayer, OutputLayer)


@register_method("geometry_adapter", GeometryAdapterConfig)
class GeometryAdapterModel(SlotTuner):
    """Adds the Geometry-aware Adapter to a backbone (Point-PEFT, arXiv 2310.03059, section 3.3).

    In every block a bottleneck after the feed-forward network, then attention inside local groups of tokens, whose
    features are propagated back to all tokens, then a residual bottleneck.

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import GeometryAdapterConfig, PointMAEConfig, PointMAEForClassification
        >>> model = get_peft_model(PointMAEForClassification(PointMAEConfig(num_labels=15)), GeometryAdapterConfig())
    """

    layer_classes = GEOMETRY_LAYERS
