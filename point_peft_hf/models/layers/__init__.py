"""Layers that the point transformers share."""

from .class_token import ClassToken
from .classification_head import ClassificationHead, ShallowClassificationHead
from .encoder import PointTransformerEncoder
from .patch_embedding import PatchEmbedding
from .position_embedding import PositionEmbedding
from .segmentation_head import SegmentationHead, TokenFusion, TokenPyramid
from .sine_position_embedding import SinePositionEmbedding
from .slotted import SlottedModule, check_not_trained, current, is_constant, is_pretrained, original
from .transformer import PointAttention, PointMLP, PointTransformerLayer, TokenLayer

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
    "TokenFusion",
    "TokenPyramid",
    "SlottedModule",
    "TokenLayer",
    "current",
    "is_constant",
    "is_pretrained",
    "original",
    "check_not_trained",
]
