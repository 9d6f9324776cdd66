"""GAPrompt: prompts that know the shape of the cloud, and points that move (arXiv 2505.04119)."""

from .config import GAPromptConfig
from .model import GAPromptModel

__all__ = ["GAPromptConfig", "GAPromptModel"]
