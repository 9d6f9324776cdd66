"""Point Transformer V3 (arXiv 2312.10035) and its relatives Sonata, Concerto and Utonia."""

from .configuration_ptv3 import PointTransformerV3Config
from .modeling_ptv3 import (
    PointTransformerV3ForClassification,
    PointTransformerV3ForSemanticSegmentation,
    PointTransformerV3Model,
)

__all__ = [
    "PointTransformerV3Config",
    "PointTransformerV3ForClassification",
    "PointTransformerV3ForSemanticSegmentation",
    "PointTransformerV3Model",
]
