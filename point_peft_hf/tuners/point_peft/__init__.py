"""Point-PEFT (arXiv 2310.03059) as one adapter: geometry, prompts, and the tuning of biases, norm and class token."""

from ..registry import register_point_peft_method
from .config import PointPeftConfig
from .layer import PointPeftLayer
from .model import PointPeftModel

__all__ = ["PointPeftConfig", "PointPeftLayer", "PointPeftModel"]

register_point_peft_method("point_peft", PointPeftConfig, PointPeftModel)
