"""Modules whose layers have slots, and how to run them as they were pre-trained."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from torch.nn import functional as F

from ...slots import LayerSlot, Stage

ADAPTED = (BaseTunerLayer, AuxiliaryTrainingWrapper)


def original(module: nn.Module) -> nn.Module:
    """The module that an adapter layer or the copies of a trained module stand in for."""
    while True:
        if isinstance(module, AuxiliaryTrainingWrapper):
            module = module.original_module
        elif isinstance(module, BaseTunerLayer):
            module = module.base_layer
        else:
            return module


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks on when the module itself runs."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def current(module: nn.Module) -> nn.Module:
    """The module that runs in the place of a trained one: the copy of the active adapter, or else the original.

    A wrapper with hooks, which may choose among its copies in each call, is left as it is.
    """
    if not isinstance(module, ModulesToSaveWrapper) or has_hooks(module):
        return module
    names = module.active_adapters
    is_at_work = names and not module.disable_adapters and names[0] in module.modules_to_save
    return module.modules_to_save[names[0]] if is_at_work else module.original_module


class SlottedModule(nn.Module):
    """A module with layers that have slots, which it runs with `run_layer`."""

    def add_layer(
        self, name: str, layer: nn.Module, stage: Stage, layer_index: int | None = None, hidden_size: int | None = None
    ) -> None:
        """Add a layer and the slot for its output, `<name>_slot`."""
        self.add_module(name, layer)
        has_bias = getattr(layer, "bias", None) is not None
        self.add_module(f"{name}_slot", LayerSlot(stage, name, layer_index, hidden_size, has_bias))

    def run_layer(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        """Run a layer and its slot: `<name>_slot(<name>(inputs), inputs)`.

        Where adapters shift the bias of a linear layer or a norm and do nothing else, predictions do it before the
        layer adds it: a pass over all rows less. Steps of training, where it would save little, add one after the
        other, so that recorded runs repeat to the last digit.
        """
        layer, slot = self._modules[name], self._modules[f"{name}_slot"]
        shift = slot.shift()
        if shift is None or self.training or torch.is_grad_enabled() or not _adds_as_it_is(layer, slot, inputs, shift):
            return slot(layer(inputs), inputs)
        if isinstance(layer, nn.Linear):
            return F.linear(inputs, layer.weight, layer.bias + shift)
        return F.layer_norm(inputs, layer.normalized_shape, layer.weight, layer.bias + shift, layer.eps)


def _adds_as_it_is(layer: nn.Module, slot: nn.Module, inputs: torch.Tensor, shift: torch.Tensor) -> bool:
    """Whether a layer is one of PyTorch that adds its bias in the dtype of the shift, and nobody looks on."""
    if type(layer) not in (nn.Linear, nn.LayerNorm) or layer.bias is None or inputs.is_meta:
        return False
    if not inputs.dtype == layer.bias.dtype == shift.dtype or torch.is_autocast_enabled(inputs.device.type):
        return False
    # Libraries that move weights between devices replace `forward`.
    return not any(
        has_hooks(module) or module._backward_hooks or "forward" in vars(module) for module in (layer, slot)
    )


def is_pretrained(module: nn.Module) -> bool:
    """Whether a module computes what it was pre-trained to: nothing in it is trained, and no adapter is attached."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    return not any(isinstance(m, ADAPTED) for m in module.modules())


def is_constant(*modules: nn.Module) -> bool:
    """Whether modules compute the same from step to step, and nobody looks on.

    Nothing in them is trained or adapted, and there are no hooks. What is drawn at random is left to the caller.
    """
    return all(map(is_pretrained, modules)) and not any(
        has_hooks(part) for module in modules for part in module.modules()
    )


def check_not_trained(module: nn.Module, reason: str, left_out: tuple[str, ...] = ()) -> None:
    """Check that nothing is trained of a pre-trained model, except its children `left_out`; `reason` says why not."""
    name = trained_weight(module, left_out)
    if name is not None:
        raise ValueError(
            f"{name!r}, a weight of the backbone, is being trained, but {reason}. Freeze it, or name its module in "
            "the adapter's `modules_to_save`."
        )


def trained_weight(module: nn.Module, left_out: tuple[str, ...] = ()) -> str | None:
    """Name of a weight of the pre-trained model itself that is being trained; `None` if there is none."""
    module = original(module)
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.requires_grad:
            return name
    for name, child in module.named_children():
        found = None if name in left_out else trained_weight(child)
        if found is not None:
            return f"{name}.{found}"
    return None
