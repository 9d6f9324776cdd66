"""A bottleneck with a local convolution beside the feed-forward networks of a scene encoder."""

from .config import VoxelAdapterConfig
from .model import VoxelAdapterModel

__all__ = ["VoxelAdapterConfig", "VoxelAdapterModel"]
