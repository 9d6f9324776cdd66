"""Point-PEFT (arXiv 2310.03059) as one adapter: geometry, prompts, and the tuning of biases, norm and class token."""

from .config import PointPeftConfig
from .model import PointPeftModel

__all__ = ["PointPeftConfig", "PointPeftModel"]
