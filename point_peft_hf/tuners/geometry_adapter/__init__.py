"""Geometry-aware Adapter: attention in local groups of tokens (Point-PEFT, arXiv 2310.03059)."""

from .config import GeometryAdapterConfig
from .model import GeometryAdapterModel

__all__ = ["GeometryAdapterConfig", "GeometryAdapterModel"]
