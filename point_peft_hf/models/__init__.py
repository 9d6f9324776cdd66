"""Groups -> tokens -> blocks -> head: the pre-trained point transformers."""

from .auto import AutoModelForPointCloudClassification
from .point_mae import PointMAEConfig, PointMAEForClassification, PointMAEForPreTraining, PointMAEModel

__all__ = [
    "AutoModelForPointCloudClassification",
    "PointMAEConfig",
    "PointMAEForClassification",
    "PointMAEForPreTraining",
    "PointMAEModel",
]
