"""Which parameters the weight decay of every training here leaves alone."""

from __future__ import annotations

from torch import nn


def is_exempt_from_decay(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter gets no weight decay: biases, norms, tokens and prompts.

    Args:
        name: Its name in the model.
        parameter: The parameter.
    """
    return parameter.ndim <= 1 or "token" in name or "prompt_" in name.rsplit(".", 2)[0]
