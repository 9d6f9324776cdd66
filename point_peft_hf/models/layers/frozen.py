"""Running a model as it was pre-trained, whatever is attached to it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

_ADAPTED = (BaseTunerLayer, AuxiliaryTrainingWrapper)


@contextmanager
def pretrained_behavior(module: nn.Module) -> Iterator[None]:
    """Run `module` in eval mode, without gradient and without any adapter, and leave it as it was.

    Unlike `disable_adapter()` this does not touch `requires_grad`, so it can be used inside of a training step.

    Args:
        module: The model or a part of it.

    Yields:
        Nothing.
    """
    adapted, training = [], []
    for m in _modules_without_adapters(module):
        if isinstance(m, _ADAPTED) and not m._disable_adapters:
            adapted.append(m)
        if m.training:
            training.append(m)
    try:
        for m in training:
            m.training = False
        for m in adapted:
            m._disable_adapters = True
        with torch.no_grad():
            yield
    finally:
        for m in training:
            m.training = True
        for m in adapted:
            m._disable_adapters = False


def _modules_without_adapters(module: nn.Module) -> Iterator[nn.Module]:
    """All modules that run while adapters are disabled: there may be hundreds of adapters."""
    yield module
    if isinstance(module, BaseTunerLayer):
        children = [module.base_layer]
    elif isinstance(module, AuxiliaryTrainingWrapper):
        children = [module.original_module]
    else:
        children = module.children()
    for child in children:
        yield from _modules_without_adapters(child)


def is_pretrained(module: nn.Module) -> bool:
    """Whether a module computes what it was pre-trained to: nothing in it is trained, and no adapter is attached.

    Args:
        module: A part of a model.
    """
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    return not any(isinstance(m, _ADAPTED) for m in module.modules())
