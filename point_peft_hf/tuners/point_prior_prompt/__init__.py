"""Point-prior Prompt: prompts enhanced from a memory bank of training features (Point-PEFT, arXiv 2310.03059)."""

from .bank import PointPriorBank, set_point_prior_bank
from .build import build_point_prior_bank
from .compression import compress_bank
from .config import PointPriorPromptConfig
from .explain import RetrievalReport, explain_retrieval
from .model import PointPriorPromptModel
from .retrieval import retrieve

__all__ = [
    "PointPriorBank",
    "PointPriorPromptConfig",
    "PointPriorPromptModel",
    "RetrievalReport",
    "build_point_prior_bank",
    "compress_bank",
    "explain_retrieval",
    "retrieve",
    "set_point_prior_bank",
]
