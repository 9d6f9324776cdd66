"""The fingerprint of a backbone: which weights an adapter was made for, wherever they were loaded from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

# From the most exact to the least. Only a model whose weights are all exact enough has a digest of a precision.
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_EXACT = (torch.float64, torch.float32)
_DIGEST_LENGTH = 32


@torch.no_grad()
def fingerprint(model: nn.Module, left_out: Iterable[str] = ()) -> dict[str, str]:
    """Digests of the frozen weights of a backbone.

    All bytes of all weights and statistics count, with their names and shapes. There is one digest for each precision
    that the weights may be cast to, because a backbone that is loaded in bfloat16 is still the backbone that an
    adapter was trained on in float32. What belongs to a task (head, class token) and what adapters added is left out;
    of a module that an adapter brings a copy of, the original counts. Costs about a second for 100 million weights.

    Args:
        model: The backbone, with or without adapters.
        left_out: Names of the modules that belong to the task, where the model does not declare them itself.

    Returns:
        Digests by precision; none for weights that are quantised or not there ("meta").
    """
    names = set(getattr(model, "task_module_names", None) or left_out)
    if getattr(getattr(model, "base_model", model), "is_pretrained_with_class_token", False):
        # There the class token is no part of the task: it has a say in the features of the pre-trained encoder.
        names.discard("class_token")
    tensors = dict(sorted(_frozen_tensors(model, "", names), key=lambda named: named[0]))
    if not tensors or any(tensor.is_meta for tensor in tensors.values()):
        return {}
    return {
        name: _digest(tensors, dtype)
        for name, dtype in PRECISIONS.items()
        if all(tensor.dtype in (*_EXACT, dtype) for tensor in tensors.values())
    }


def common_precision(expected: Mapping[str, str], got: Mapping[str, str]) -> str | None:
    """The most exact precision that both of two fingerprints have a digest of; `None` if there is none.

    Args:
        expected: One fingerprint.
        got: Another.
    """
    return next((name for name in PRECISIONS if name in expected and name in got), None)


def _frozen_tensors(module: nn.Module, prefix: str, left_out: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(module, AuxiliaryTrainingWrapper):
        module = module.original_module
    while isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    for name, tensor in _own_tensors(module).items():
        yield prefix + name, tensor
    for name, child in module.named_children():
        if name not in left_out:
            yield from _frozen_tensors(child, f"{prefix}{name}.", left_out)


def _own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and saved statistics of a module, without those of its children."""
    passing = module._non_persistent_buffers_set
    buffers = {name: b for name, b in module.named_buffers(recurse=False) if name not in passing}
    # Integers among the buffers count things (the batches that a BatchNorm has seen), and change nothing.
    statistics = {name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}
    return {**dict(module.named_parameters(recurse=False)), **statistics}


def _digest(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        # By way of float32, so that a cast from float64 is not rounded otherwise than one from float32.
        values = tensor.detach().to("cpu", torch.float32).to(dtype).contiguous()
        digest.update(values.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:_DIGEST_LENGTH]
