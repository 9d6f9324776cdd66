"""What the optimizer of every training here gets: parameters with and without weight decay, and a learning rate."""

from __future__ import annotations

import math
from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group the trained parameters of a model: no weight decay on biases, norms, tokens and prompts.

    Args:
        model: The model.
        weight_decay: Weight decay of all others.

    Returns:
        Two groups for an optimizer of PyTorch: with weight decay, and without.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    exempt = {name for name, p in named if p.ndim <= 1 or "token" in name or "prompt_" in name.rsplit(".", 2)[0]}
    return [
        {"params": [p for name, p in named if name not in exempt], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in exempt], "weight_decay": 0.0},
    ]


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, floor: float = 2e-3) -> float:
    """Factor of the learning rate: a linear rise, then half a cosine down to almost 0.

    Args:
        step: Number of the step, from 0.
        total_steps: Number of steps of the training.
        warmup_steps: Steps of the rise.
        floor: Factor at the end.

    Returns:
        The factor, above 0 and at most 1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
