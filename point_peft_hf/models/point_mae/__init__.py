"""Point-MAE (arXiv 2203.06604)."""

from .configuration_point_mae import PointMAEConfig
from .modeling_point_mae import (
    PointMAEForClassification,
    PointMAEForPreTraining,
    PointMAEForSegmentation,
    PointMAEModel,
)

__all__ = [
    "PointMAEConfig",
    "PointMAEForClassification",
    "PointMAEForPreTraining",
    "PointMAEForSegmentation",
    "PointMAEModel",
]
