"""Published files of methods: what their readers make of them.

A tuner whose method has published checkpoints has `read_published`, a function of the tensors of a file by their
published names (without wrappers like `module.`), the options that it was trained with by their published names, and
the model type of the backbone. It takes what belongs to the adapter, and leaves the rest to the converter
(`point_peft_hf.models.convert.convert_checkpoint(..., method=...)`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from .config import PointTunerConfig


class PublishedAdapter(NamedTuple):
    """What a published file of a method on a point transformer consists of.

    Attributes:
        config: Configuration of the adapter. Its `modules_to_save` names what of `base` belongs into the adapter's
            file: head, class token and the like.
        weights: The tensors of its own layers, by their names in the adapter's file.
        base: What is left of the file, by the published names of the plain backbone.
        switches: In words, the fields that were set other than by default to compute what the published code does.
        unused: By name in the file, why a tensor has no influence on what the model computes.
    """

    config: PointTunerConfig
    weights: Mapping[str, torch.Tensor]
    base: Mapping[str, torch.Tensor]
    switches: tuple[str, ...] = ()
    unused: Mapping[str, str] = MappingProxyType({})


def read_size(settings: Mapping[str, Any], name: str, found: Any) -> Any:
    """An option that the tensors of a file show as well."""
    if name in settings and settings[name] != found:
        raise ValueError(
            f"The configuration says {name}={settings[name]!r}, but the tensors of the file have {found!r}. Leave it "
            "out of the configuration: it is read from the tensors."
        )
    return found


def module_names(base: Mapping[str, torch.Tensor]) -> list[str]:
    """What an adapter of a published file brings of the modules of a backbone: the head, and a class token."""
    return ["classifier", *(["class_token"] if "cls_token" in base else [])]


# What a published name matches, and what the tensor is called in the adapter's own file, after the name of the
# encoder; several names for one that holds several parts, one below the other.
Rules = Mapping[str, Callable[[re.Match], str | list[str]]]


def split_published(
    tensors: Mapping[str, torch.Tensor], rules: Rules, model_type: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Take the tensors of an adapter out of a published file.

    Returns:
        The adapter's tensors by their names in its own file, and the others by their published names.
    """
    weights, base = {}, {}
    for name, tensor in tensors.items():
        found = next(((match, target) for rule, target in rules.items() if (match := re.fullmatch(rule, name))), None)
        if found is None:
            base[name] = tensor
            continue
        targets = found[1](found[0])
        targets = [targets] if isinstance(targets, str) else targets
        if len(targets) > 1 and (tensor.ndim == 0 or tensor.shape[0] % len(targets)):
            raise ValueError(
                f"{name!r} should hold {len(targets)} parts, one below the other, but has shape "
                f"{tuple(tensor.shape)}. The file is damaged or of another method."
            )
        parts = tensor.chunk(len(targets)) if len(targets) > 1 else [tensor]
        weights.update((f"base_model.model.{model_type}.{t}", part) for t, part in zip(targets, parts, strict=True))
    return weights, base


def size_in(weights: Mapping[str, torch.Tensor], ending: str, method: str, published_name: str) -> int:
    """Number of rows of the first of an adapter's tensors whose name ends so."""
    found = next((tensor for name, tensor in weights.items() if name.endswith(ending)), None)
    if found is None or found.ndim == 0:
        raise ValueError(f"A file of {method} has {published_name!r}; this one does not.")
    return found.shape[0]


def head_parts(base: Mapping[str, torch.Tensor]) -> int | None:
    """How many features of the width of a token the classification head of a file reads; `None` if it has no head."""
    head, norm = base.get("cls_head_finetune.0.weight"), base.get("norm.weight")
    if head is None or norm is None:
        return None
    if head.ndim != 2 or head.shape[1] % norm.numel():
        raise ValueError(
            f"'cls_head_finetune.0.weight' has shape {tuple(head.shape)}: it must read one or more tokens of width "
            f"{norm.numel()}. The file is damaged or of another method."
        )
    return head.shape[1] // norm.numel()


def option(settings: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A published option; the text "None" is `None`."""
    value = settings.get(name, default)
    return None if value == "None" else value
