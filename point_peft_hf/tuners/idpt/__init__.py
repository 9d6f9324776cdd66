"""IDPT: a prompt that is generated from the tokens of each cloud (arXiv 2304.07221)."""

from .config import IDPTConfig
from .model import IDPTModel

__all__ = ["IDPTConfig", "IDPTModel"]
