"""Groups -> tokens -> blocks -> head: the pre-trained point transformers."""

from .auto import AutoModelForPointCloudClassification
from .point_bert import PointBertConfig, PointBertForClassification, PointBertModel
from .point_m2ae import PointM2AEConfig, PointM2AEForClassification, PointM2AEForPreTraining, PointM2AEModel
from .point_mae import PointMAEConfig, PointMAEForClassification, PointMAEForPreTraining, PointMAEModel

__all__ = [
    "AutoModelForPointCloudClassification",
    "PointBertConfig",
    "PointBertForClassification",
    "PointBertModel",
    "PointM2AEConfig",
    "PointM2AEForClassification",
    "PointM2AEForPreTraining",
    "PointM2AEModel",
    "PointMAEConfig",
    "PointMAEForClassification",
    "PointMAEForPreTraining",
    "PointMAEModel",
]
