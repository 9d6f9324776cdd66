"""The fingerprint of a backbone: which weights an adapter was made for, wherever they were loaded from."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import nn

from ..attaching import backbone_tensors, pretrained_parts, unsaved_task_tensors

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
    names = set(getattr(model, "task_module_names", None) or left_out) - pretrained_parts(model)
    # Integers among the buffers count things (the batches that a BatchNorm has seen), and change nothing.
    return _digests(
        {
            name: tensor
            for name, tensor, _ in backbone_tensors(model, names)
            if tensor.is_floating_point() or isinstance(tensor, nn.Parameter)
        }
    )


@torch.no_grad()
def unsaved_fingerprints(
    model: nn.Module, modules_to_save: Collection[str], brought_by_others: Collection[str] = ()
) -> dict[str, dict[str, str]]:
    """Digests of the modules of the task that no adapter brings.

    Args:
        model: The backbone, with or without adapters.
        modules_to_save: Modules that the adapter brings.
        brought_by_others: Modules that another adapter is going to bring.

    Returns:
        Digests by precision, by module.
    """
    digests = {
        part: _digests({name.partition(f"{part}.")[2]: tensor for name, tensor in tensors.items()})
        for part, tensors in unsaved_task_tensors(model, modules_to_save, brought_by_others).items()
    }
    return {part: digest for part, digest in digests.items() if digest}


def _digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    tensors = dict(sorted(tensors.items()))
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


def _digest(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        # By way of float32, so that a cast from float64 is not rounded otherwise than one from float32.
        values = tensor.detach().to("cpu", torch.float32).to(dtype).contiguous()
        digest.update(values.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:_DIGEST_LENGTH]
