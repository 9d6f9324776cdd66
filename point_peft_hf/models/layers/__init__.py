"""Layers that the point transformers share."""

from .class_token import ClassToken
from .classification_head import ClassificationHead
from .encoder import PointTransformerEncoder
from .frozen import pretrained_behavior
from .patch_embedding import PatchEmbedding
from .position_embedding import PositionEmbedding
from .transformer import PointAttention, PointMLP, PointTransformerLayer

__all__ = [
    "ClassToken",
    "ClassificationHead",
    "PatchEmbedding",
    "PointAttention",
    "PointMLP",
    "PointTransformerEncoder",
    "PointTransformerLayer",
    "PositionEmbedding",
    "pretrained_behavior",
]
