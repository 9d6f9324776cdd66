"""Parameter-efficient fine-tuning of pre-trained point-cloud transformers, as PEFT types.

Importing this package registers its PEFT types with `peft` and its models with the Auto classes of `transformers`.
"""

from .auto import AutoPointPeftModel
from .data import PointCloudProcessor, load_dataset, read_point_cloud, register_processor, write_point_cloud
from .models import (
    AutoModelForPointCloudClassification,
    AutoModelForPointCloudSegmentation,
    PointBertConfig,
    PointBertForClassification,
    PointBertForSegmentation,
    PointBertModel,
    PointGPTConfig,
    PointGPTForClassification,
    PointGPTForPreTraining,
    PointGPTForSegmentation,
    PointGPTModel,
    PointM2AEConfig,
    PointM2AEForClassification,
    PointM2AEForPreTraining,
    PointM2AEForSegmentation,
    PointM2AEModel,
    PointMAEConfig,
    PointMAEForClassification,
    PointMAEForPreTraining,
    PointMAEForSegmentation,
    PointMAEModel,
)
from .models.auto import CONFIGURATIONS
from .ops import farthest_point_sample, group_points, knn_indices
from .tuners import (
    GeometryAdapterConfig,
    GeometryAdapterModel,
    PointPeftConfig,
    PointPeftModel,
    PointPriorBank,
    PointPriorPromptConfig,
    PointPriorPromptModel,
    RetrievalReport,
    STAGConfig,
    STAGModel,
    add_adapters,
    build_point_prior_bank,
    compress_bank,
    explain_retrieval,
    load_adapters,
    save_adapters,
    set_adapters,
    set_point_prior_bank,
)

for _config_class in CONFIGURATIONS:
    register_processor(_config_class)

__version__ = "0.1.0"

__all__ = [
    "AutoModelForPointCloudClassification",
    "AutoModelForPointCloudSegmentation",
    "AutoPointPeftModel",
    "GeometryAdapterConfig",
    "GeometryAdapterModel",
    "PointBertConfig",
    "PointBertForClassification",
    "PointBertForSegmentation",
    "PointBertModel",
    "PointCloudProcessor",
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
    "PointPeftConfig",
    "PointPeftModel",
    "PointPriorBank",
    "PointPriorPromptConfig",
    "PointPriorPromptModel",
    "RetrievalReport",
    "STAGConfig",
    "STAGModel",
    "add_adapters",
    "build_point_prior_bank",
    "compress_bank",
    "explain_retrieval",
    "farthest_point_sample",
    "group_points",
    "knn_indices",
    "load_adapters",
    "load_dataset",
    "read_point_cloud",
    "save_adapters",
    "set_adapters",
    "set_point_prior_bank",
    "write_point_cloud",
]
