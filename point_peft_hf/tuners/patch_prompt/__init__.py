"""Learned keys and values for the attention within patches of a scene encoder."""

from .config import PatchPromptConfig
from .model import PatchPromptModel

__all__ = ["PatchPromptConfig", "PatchPromptModel"]
