"""Running a model as it was pre-trained, whatever is attached to it."""

from collections.abc import Collection, Iterator
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


def check_frozen(module: nn.Module, left_out: Collection[str] = ()) -> None:
    """Check that nothing is trained of what a bank was built with.

    Args:
        module: The model.
        left_out: Names of its direct children that have no say in the features.

    Raises:
        ValueError: If something is, with its name.
    """
    for name, parameter in _own_parameters(module, "", left_out):
        if parameter.requires_grad:
            raise ValueError(
                f"{name!r}, a weight of the backbone, is being trained, but the point-prior bank holds features of "
                "the backbone as it was. Freeze it, name its module in the adapter's `modules_to_save`, or use no "
                "bank."
            )


def _own_parameters(
    module: nn.Module, prefix: str, left_out: Collection[str] = ()
) -> Iterator[tuple[str, nn.Parameter]]:
    if isinstance(module, AuxiliaryTrainingWrapper):
        module = module.original_module
    while isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    for name, parameter in module.named_parameters(recurse=False):
        yield prefix + name, parameter
    for name, child in module.named_children():
        if name not in left_out:
            yield from _own_parameters(child, f"{prefix}{name}.")


def is_pretrained(module: nn.Module) -> bool:
    """Whether a module computes what it was pre-trained to: nothing in it is trained, and no adapter is attached.

    Args:
        module: A part of a model.
    """
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    return not any(isinstance(m, _ADAPTED) for m in module.modules())
