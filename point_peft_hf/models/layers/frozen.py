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
    adapted = [(m, m._disable_adapters) for m, _ in modules if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
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
