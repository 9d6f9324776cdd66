"""PointLoRA: low-rank updates of the attention, and tokens selected at several scales (arXiv 2504.16023)."""

from .config import PointLoRAConfig
from .model import PointLoRAModel

__all__ = ["PointLoRAConfig", "PointLoRAModel"]
