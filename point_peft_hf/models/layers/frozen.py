"""Running a model as it was pre-trained, whatever is attached to it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


@contextmanager
def pretrained_behavior(module: nn.Module) -> Iterator[None]:
    """Run `module` in eval mode, without gradient and without any adapter, and leave it as it was.

    Unlike `disable_adapter()` this does not touch `requires_grad`, so it can be used inside of a training step.

    Args:
        module: The model or a part of it.

    Yields:
        Nothing.
    """
    modules = [(m, m.training) for m in module.modules()]
    adapted = [
        (m, m._disable_adapters) for m, _ in modules if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    ]
    try:
        for m, _ in modules:
            m.training = False
        for m, _ in adapted:
            m._disable_adapters = True
        with torch.no_grad():
            yield
    finally:
        for m, training in modules:
            m.training = training
        for m, disabled in adapted:
            m._disable_adapters = disabled


def is_pretrained(module: nn.Module) -> bool:
    """Whether a module computes what it was pre-trained to: nothing in it is trained, and no adapter is attached.

    Args:
        module: A part of a model.
    """
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    return not any(isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for m in module.modules())
