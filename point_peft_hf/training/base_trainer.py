"""What every training here has in common, pre-training too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import Trainer


class BaseTrainer(Trainer):
    """A `transformers.Trainer` without what is meant for language models, with the weight decay of this package."""

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any):
        super().__init__(model, *args, **kwargs)
        # A field of language models, which the Trainer sets and other configurations refuse to load.
        vars(self.accelerator.unwrap_model(self.model).config).pop("use_cache", None)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The parameters with weight decay: all but biases, norms, tokens and prompts."""
        return [name for name, parameter in model.named_parameters() if not is_exempt_from_decay(name, parameter)]

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Not counted: the formula of transformers is one of language models."""
        return 0


def is_exempt_from_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter gets no weight decay: biases, norms, tokens and prompts."""
    return parameter.ndim <= 1 or "token" in name or "prompt_" in name.rsplit(".", 2)[0]
