"""A bottleneck with a local convolution parallel to the feed-forward networks of a scene encoder."""

from __future__ import annotations

from ..base import SlotTuner
from ..registry import register_method
from .config import VoxelAdapterConfig
from .layer import VoxelAdapterLayer


@register_method("voxel_adapter", VoxelAdapterConfig)
class VoxelAdapterModel(SlotTuner):
    """Adds a bottleneck with a local convolution parallel to each feed-forward network of a scene encoder.

    Example:
        >>> from peft import get_peft_model
        >>> from point_peft_hf import (
        ...     PointTransformerV3Config, PointTransformerV3ForSemanticSegmentation, VoxelAdapterConfig
        ... )
        >>> backbone = PointTransformerV3ForSemanticSegmentation(PointTransformerV3Config(num_labels=13))
        >>> model = get_peft_model(backbone, VoxelAdapterConfig())
    """

    layer_classes = (VoxelAdapterLayer,)
