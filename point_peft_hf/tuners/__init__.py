"""The 3D adapter types. Importing this package registers them with `peft`."""

from .geometry_adapter import GeometryAdapterConfig, GeometryAdapterModel
from .point_peft import PointPeftConfig, PointPeftModel
from .point_prior_prompt import (
    PointPriorBank,
    PointPriorPromptConfig,
    PointPriorPromptModel,
    build_point_prior_bank,
    set_point_prior_bank,
)
from .registry import register_point_peft_method

__all__ = [
    "GeometryAdapterConfig",
    "GeometryAdapterModel",
    "PointPeftConfig",
    "PointPeftModel",
    "PointPriorBank",
    "PointPriorPromptConfig",
    "PointPriorPromptModel",
    "build_point_prior_bank",
    "register_point_peft_method",
    "set_point_prior_bank",
]
