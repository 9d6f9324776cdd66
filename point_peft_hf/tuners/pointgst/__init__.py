"""PointGST: adapters in the spectral domain of a graph of the tokens (arXiv 2410.08114)."""

from .config import PointGSTConfig
from .model import PointGSTModel

__all__ = ["PointGSTConfig", "PointGSTModel"]
