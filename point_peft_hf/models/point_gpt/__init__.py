"""PointGPT (arXiv 2305.11487)."""

from .configuration_point_gpt import PointGPTConfig
from .modeling_point_gpt import (
    PointGPTForClassification,
    PointGPTForSegmentation,
    PointGPTModel,
)
from .pretraining_point_gpt import PointGPTForPreTraining

__all__ = [
    "PointGPTConfig",
    "PointGPTForClassification",
    "PointGPTForPreTraining",
    "PointGPTForSegmentation",
    "PointGPTModel",
]
