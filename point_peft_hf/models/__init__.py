"""Groups -> tokens -> blocks -> head: the pre-trained point transformers."""

from .auto import (
    AutoModelForPointCloudClassification,
    AutoModelForPointCloudSegmentation,
    AutoModelForPointCloudSemanticSegmentation,
)
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
from .ptv3 import (
    PointTransformerV3Config,
    PointTransformerV3ForClassification,
    PointTransformerV3ForSemanticSegmentation,
    PointTransformerV3Model,
)
from .recon import ReConConfig, ReConForClassification, ReConForSegmentation, ReConModel

__all__ = [
    "AutoModelForPointCloudClassification",
    "AutoModelForPointCloudSegmentation",
    "AutoModelForPointCloudSemanticSegmentation",
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
    "PointTransformerV3Config",
    "PointTransformerV3ForClassification",
    "PointTransformerV3ForSemanticSegmentation",
    "PointTransformerV3Model",
    "ReConConfig",
    "ReConForClassification",
    "ReConForSegmentation",
    "ReConModel",
]
