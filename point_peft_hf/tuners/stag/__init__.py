"""STAG: a side network over the frozen blocks that reads from all of them and acts on the last (arXiv 2502.14142)."""

from .config import STAGConfig
from .model import STAGModel

__all__ = ["STAGConfig", "STAGModel"]
