"""Parameter-efficient fine-tuning of pre-trained point-cloud transformers, as PEFT types.

Importing this package registers its PEFT types with `peft` and its models with the Auto classes of `transformers`.
"""

from . import models
from .auto import AutoPointPeftModel
from .data import PointCloudProcessor, load_dataset, read_point_cloud, register_processor, write_point_cloud
from .data.scenes import SceneProcessor, load_scenes, read_scene, register_scene_processor
from .models import *  # noqa: F403
from .models.auto import CONFIGURATIONS, SCENE_CONFIGURATIONS
from .ops import farthest_point_sample, group_points, knn_indices
from .scenes import ScenePredictor
from .tuners import (
    DAPTConfig,
    DAPTModel,
    GAPromptConfig,
    GAPromptModel,
    GeometryAdapterConfig,
    GeometryAdapterModel,
    IDPTConfig,
    IDPTModel,
    PatchPromptConfig,
    PatchPromptModel,
    PointGSTConfig,
    PointGSTModel,
    PointLoRAConfig,
    PointLoRAModel,
    PointPeftConfig,
    PointPeftModel,
    PointPriorBank,
    PointPriorPromptConfig,
    PointPriorPromptModel,
    PPTConfig,
    PPTModel,
    RetrievalReport,
    STAGConfig,
    STAGModel,
    VoxelAdapterConfig,
    VoxelAdapterModel,
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
for _config_class in SCENE_CONFIGURATIONS:
    register_scene_processor(_config_class)

__version__ = "0.1.0"

__all__ = [
    *models.__all__,
    "AutoPointPeftModel",
    "DAPTConfig",
    "DAPTModel",
    "GAPromptConfig",
    "GAPromptModel",
    "GeometryAdapterConfig",
    "GeometryAdapterModel",
    "IDPTConfig",
    "IDPTModel",
    "PPTConfig",
    "PPTModel",
    "PatchPromptConfig",
    "PatchPromptModel",
    "PointCloudProcessor",
    "PointGSTConfig",
    "PointGSTModel",
    "PointLoRAConfig",
    "PointLoRAModel",
    "PointPeftConfig",
    "PointPeftModel",
    "PointPriorBank",
    "PointPriorPromptConfig",
    "PointPriorPromptModel",
    "RetrievalReport",
    "STAGConfig",
    "STAGModel",
    "ScenePredictor",
    "SceneProcessor",
    "VoxelAdapterConfig",
    "VoxelAdapterModel",
    "add_adapters",
    "build_point_prior_bank",
    "compress_bank",
    "explain_retrieval",
    "farthest_point_sample",
    "group_points",
    "knn_indices",
    "load_adapters",
    "load_dataset",
    "load_scenes",
    "read_point_cloud",
    "read_scene",
    "save_adapters",
    "set_adapters",
    "set_point_prior_bank",
    "write_point_cloud",
]
