"""Point-M2AE (arXiv 2205.14401)."""

from .configuration_point_m2ae import PointM2AEConfig
from .modeling_point_m2ae import (
    PointM2AEForClassification,
    PointM2AEForSegmentation,
    PointM2AEModel,
)
from .pretraining_point_m2ae import PointM2AEForPreTraining

__all__ = [
    "PointM2AEConfig",
    "PointM2AEForClassification",
    "PointM2AEForPreTraining",
    "PointM2AEForSegmentation",
    "PointM2AEModel",
]
