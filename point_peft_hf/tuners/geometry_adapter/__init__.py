"""Geometry-aware Adapter: attention in local groups of tokens, propagated back (Point-PEFT, arXiv 2310.03059)."""

from ..registry import register_point_peft_method
from .config import GeometryAdapterConfig
from .layer import GeometryAdapterLayer
from .model import GeometryAdapterModel

__all__ = ["GeometryAdapterConfig", "GeometryAdapterLayer", "GeometryAdapterModel"]

register_point_peft_method("geometry_adapter", GeometryAdapterConfig, GeometryAdapterModel)
