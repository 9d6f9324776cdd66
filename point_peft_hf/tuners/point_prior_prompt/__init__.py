"""Point-prior Prompt: prompts enhanced from a memory bank of training features (Point-PEFT, arXiv 2310.03059)."""

from ..registry import register_point_peft_method
from .bank import PointPriorBank, build_point_prior_bank, retrieve, set_point_prior_bank
from .config import PointPriorPromptConfig
from .layer import PointPriorPromptLayer
from .model import PointPriorPromptModel

__all__ = [
    "PointPriorBank",
    "PointPriorPromptConfig",
    "PointPriorPromptLayer",
    "PointPriorPromptModel",
    "build_point_prior_bank",
    "retrieve",
    "set_point_prior_bank",
]

register_point_peft_method("point_prior_prompt", PointPriorPromptConfig, PointPriorPromptModel)
