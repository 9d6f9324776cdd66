"""DAPT: dynamic adapters and prompts made of what they add (arXiv 2403.01439)."""

from .config import DAPTConfig
from .model import DAPTModel

__all__ = ["DAPTConfig", "DAPTModel"]
