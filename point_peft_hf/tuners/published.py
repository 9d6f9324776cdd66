"""Published files of methods: what their readers make of them.

A tuner whose method has published checkpoints has `read_published`, a function of the tensors of a file by their
published names (without wrappers like `module.`), the options that it was trained with by their published names, and
the model type of the backbone. It takes what belongs to the adapter, and leaves the rest to the converter
(`point_peft_hf.models.convert.convert_checkpoint(..., method=...)`).
"""

from __future__ import annotations

from collections.abc import Mapping
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
        unused: By name in the file, why a tensor has no say in what the model computes.
    """

    config: PointTunerConfig
    weights: Mapping[str, torch.Tensor]
    base: Mapping[str, torch.Tensor]
    switches: tuple[str, ...] = ()
    unused: Mapping[str, str] = MappingProxyType({})


def read_size(settings: Mapping[str, Any], name: str, found: Any) -> Any:
    """An option that the tensors of a file tell as well.

    Args:
        settings: The options by their published names.
        name: Published name of the option.
        found: What the tensors tell.

    Returns:
        `found`.

    Raises:
        ValueError: If the option was given and is another.
    """
    if name in settings and settings[name] != found:
        raise ValueError(
            f"The configuration says {name}={settings[name]!r}, but the tensors of the file have {found!r}. Leave it "
            "out of the configuration: it is read from the tensors."
        )
    return found


def module_names(base: Mapping[str, torch.Tensor]) -> list[str]:
    """What an adapter of a published file brings of the modules of a backbone: the head, and a class token.

    Args:
        base: What is left of the file without the method's own tensors, by published name.
    """
    return ["classifier", *(["class_token"] if "cls_token" in base else [])]
