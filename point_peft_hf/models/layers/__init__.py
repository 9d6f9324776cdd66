"""Layers that the point transformers share."""

from .class_token import ClassToken
from .classification_head import ClassificationHead, ShallowClassificationHead
from .encoder import PointTransformerEncoder
from .frozen import check_frozen, is_pretrained, pretrained_behavior
from .patch_embedding import PatchEmbedding
from .position_embedding import PositionEmbedding
from .segmentation_head import SegmentationHead, TokenFusion, TokenPyramid
from .sine_position_embedding import SinePositionEmbedding
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
    "SegmentationHead",
    "ShallowClassificationHead",
    "SinePositionEmbedding",
    "check_frozen",
    "TokenFusion",
    "TokenPyramid",
    "is_pretrained",
    "pretrained_behavior",
]
