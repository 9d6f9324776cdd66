"""ReCon (arXiv 2302.02318)."""

from .configuration_recon import ReConConfig
from .modeling_recon import ReConForClassification, ReConForSegmentation, ReConModel

__all__ = [
    "ReConConfig",
    "ReConForClassification",
    "ReConForSegmentation",
    "ReConModel",
]
