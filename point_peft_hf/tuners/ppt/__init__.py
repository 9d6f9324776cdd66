"""PPT: a second set of tokens, and networks that all blocks share (arXiv 2408.11567)."""

from .config import PPTConfig
from .model import PPTModel

__all__ = ["PPTConfig", "PPTModel"]
