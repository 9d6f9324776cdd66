"""Point-BERT (arXiv 2111.14819)."""

from .configuration_point_bert import PointBertConfig
from .modeling_point_bert import (
    PointBertForClassification,
    PointBertForSegmentation,
    PointBertModel,
)

__all__ = [
    "PointBertConfig",
    "PointBertForClassification",
    "PointBertForSegmentation",
    "PointBertModel",
]
