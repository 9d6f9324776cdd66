"""Groups -> tokens -> blocks -> head: the pre-trained point transformers."""

from .auto import AutoModelForPointCloudClassification, AutoModelForPointCloudSegmentation
from .point_bert import PointBertConfig, PointBertForClassification, PointBertForSegmentation, PointBertModel
from .point_gpt import (
    PointGPTConfig,
    PointGPTForClassification,
    PointGPTForPreTraining,
    PointGPTForSegmentation,
    PointGPTModel,
)
from .point_m2ae import (
    PointM2AEConfig,
    PointM2AEForClassification,
    PointM2AEForPreTraining,
    PointM2AEForSegmentation,
    PointM2AEModel,
)
from .point_mae import (
    PointMAEConfig,
    PointMAEForClassification,
    PointMAEForPreTraining,
    PointMAEForSegmentation,
    PointMAEModel,
)
from .recon import ReConConfig, ReConForClassification, ReConForSegmentation, ReConModel

__all__ = [
    "AutoModelForPointCloudClassification",
    "AutoModelForPointCloudSegmentation",
    "PointBertConfig",
    "PointBertForClassification",
    "PointBertForSegmentation",
    "PointBertModel",
    "PointGPTConfig",
    "PointGPTForClassification",
    "PointGPTForPreTraining",
    "PointGPTForSegmentation",
    "PointGPTModel",
    "PointM2AEConfig",
    "PointM2AEForClassification",
    "PointM2AEForPreTraining",
    "PointM2AEForSegmentation",
    "PointM2AEModel",
    "PointMAEConfig",
    "PointMAEForClassification",
    "PointMAEForPreTraining",
    "PointMAEForSegmentation",
    "PointMAEModel",
    "ReConConfig",
    "ReConForClassification",
    "ReConForSegmentation",
    "ReConModel",
]
