"""Tuner of the Geometry-aware Adapter."""

from __future__ import annotations

from ...slots import AdapterSlot, FeedForwardSlot, LocalitySlot, OutputSlot
from ..base import SlotTuner
from .config import GeometryOptions
from .layer import (
    GeometryAdapterFeedForwardLayer,
    GeometryAdapterLayer,
    GeometryAdapterLocalityLayer,
    GeometryAdapterOutputLayer,
)


def wants_geometry_slot(config: GeometryOptions, slot: AdapterSlot) -> bool:
    """Whether a Geometry-aware Adapter has something to put around a slot."""
    if isinstance(slot, LocalitySlot):
        return config.use_local_aggregation
    if isinstance(slot, FeedForwardSlot):
        return config.use_ffn_bottleneck
    return isinstance(slot, OutputSlot) and (config.use_local_aggregation or config.use_output_bottleneck)


class GeometryAdapterModel(SlotTuner):
    """Adds the Geometry-aware Adapter to a backbone (Point-PEFT, arXiv 2310.03059, section 3.3).

    In every block a bottleneck beside the feed-forward network, then attention inside local groups of tokens, whose
    features are propagated back to all tokens, then a residual bottleneck.

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import GeometryAdapterConfig, PointMAEConfig, PointMAEForClassification
        >>> model = get_peft_model(PointMAEForClassification(PointMAEConfig(num_labels=15)), GeometryAdapterConfig())
    """

    prefix = "geometry_adapter_"
    tuner_layer_cls = GeometryAdapterLayer
    default_target_modules = ("locality_slot", "ffn_slot", "output_slot")
    layer_classes = {
        LocalitySlot: GeometryAdapterLocalityLayer,
        FeedForwardSlot: GeometryAdapterFeedForwardLayer,
        OutputSlot: GeometryAdapterOutputLayer,
    }

    def wants_slot(self, peft_config: GeometryOptions, slot: AdapterSlot) -> bool:
        """Whether the configuration has anything to put around this slot."""
        return wants_geometry_slot(peft_config, slot)
