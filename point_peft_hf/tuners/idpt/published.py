"""Published files of IDPT (github.com/zyh16143998882/ICCV23-IDPT)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..published import PublishedAdapter, head_parts, module_names, option, split_published
from .config import IDPTConfig

_PARTS = {"1": "edge1", "2": "edge2", "3": "edge3", "5": "fusion"}
# What the head reads, by the published name: class token, prompt, patch tokens.
_READOUTS = {
    "all": (True, True, "max"),
    "promptonly": (False, True, None),
    "promptcls": (True, True, None),
    "pointcls": (True, False, "max"),
}
# Modules of the head for part segmentation, which the published code marks as trained.
_MARKED = re.compile(r"(label_conv|propagation_\d+|convs\d+|bns\d+)_cls(?=\.)")
_STATE = "weight|bias|running_mean|running_var|num_batches_tracked"


def read_published(
    tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], model_type: str
) -> PublishedAdapter:
    """Read the adapter out of a published file, of classification or of part segmentation.

    The options in `settings`: `prompt_layer`, `cls_type`, `knn`.
    """
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.dgcnn_cls(\d+)\.", name))}
    if blocks:
        return _read_part_segmentation(tensors, sorted(blocks), model_type)
    tensors = _without_second_names(tensors)
    for name in ("blocks.cls.conv5.0.weight", "blocks.blocks.0.norm1.weight"):
        if name not in tensors:
            raise ValueError(f"A file of IDPT has {name!r}; this one does not.")
    last = max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.blocks\.(\d+)\.", name)))
    layer = settings.get("prompt_layer", last)
    rules = {
        "prompt_pos": lambda m: "encoder.token_slot.idpt_prompt_position.weight",
        r"blocks\.cls\.conv([1235])\.0\.weight": lambda m: f"{_generator(layer, m[1])}.linear_weight",
        rf"blocks\.cls\.bn([1235])\.({_STATE})": lambda m: f"{_generator(layer, m[1])}.{m[2]}",
    }
    weights, base = split_published(tensors, rules, model_type)
    class_token, prompt_token, patch_pooling = _READOUTS[_cls_type(settings, base)]
    config = IDPTConfig(
        prompt_layers=[layer],
        num_neighbors=settings.get("knn", IDPTConfig().num_neighbors),
        train_prompt_position=False,
        class_token=class_token,
        prompt_token=prompt_token,
        patch_pooling=patch_pooling,
        modules_to_save=module_names(base),
    )
    switches = ("train_prompt_position=False: the prompt's position embedding stays at its random start",)
    return PublishedAdapter(config, _flat(weights), base, switches)


def _read_part_segmentation(
    tensors: Mapping[str, torch.Tensor], blocks: list[int], model_type: str
) -> PublishedAdapter:
    second_norms = [name for name in tensors if re.match(r"blocks\.dgcnn_cls\d+\.bn5\.", name)]
    unused = dict.fromkeys(second_norms, "a second BatchNorm in each generator is never called")
    rules = {
        "prompt_cls_pos": lambda m: "encoder.token_slot.idpt_prompt_position.weight",
        r"blocks\.dgcnn_cls(\d+)\.conv5\.0\.weight": lambda m: f"{_generator(m[1], '5')}.linear_weight",
        rf"blocks\.dgcnn_cls(\d+)\.conv5\.1\.({_STATE})": lambda m: f"{_generator(m[1], '5')}.{m[2]}",
    }
    used = {name: tensor for name, tensor in tensors.items() if name not in unused}
    weights, base = split_published(used, rules, model_type)
    base = {_MARKED.sub(r"\1", name): tensor for name, tensor in base.items()}
    config = IDPTConfig.for_shapenetpart(prompt_layers=blocks, modules_to_save=["segmentation_head"])
    return PublishedAdapter(config, _flat(weights), base, (), unused)


def _generator(layer: int | str, number: str) -> str:
    return f"encoder.layers.{layer}.entry_slot.idpt_{_PARTS[number]}"


def _flat(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convolutions of kernel size 1 as linear layers, and the position embedding as a vector."""
    flat = {}
    for name, tensor in weights.items():
        if name.endswith("linear_weight"):
            tensor = tensor.flatten(1)
        elif name.endswith("prompt_position.weight"):
            tensor = tensor.flatten()
        flat[name] = tensor
    return flat


def _without_second_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, those of the generator's BatchNorms by one of the two names that they have in a file."""
    result = {}
    for name, tensor in tensors.items():
        first_name = re.sub(r"^blocks\.cls\.conv(\d)\.1\.", r"blocks.cls.bn\1.", name)
        first = tensors.get(first_name)
        if first is not None and not torch.equal(first, tensor):
            raise ValueError(
                f"{first_name!r} and {name!r} are the same tensor of a file of IDPT, but differ in this one. The file "
                "is damaged or of another method."
            )
        result[first_name] = tensor
    return result


def _cls_type(settings: Mapping[str, Any], base: Mapping[str, torch.Tensor]) -> str:
    """What the head reads, which has to agree with its width."""
    parts, given = head_parts(base), option(settings, "cls_type")
    if given is not None and given not in _READOUTS:
        raise ValueError(f"'cls_type' must be one of {', '.join(map(repr, _READOUTS))}, got {given!r}.")
    fitting = [name for name, readout in _READOUTS.items() if parts in (None, sum(map(bool, readout)))]
    if given in fitting:
        return given
    if given is not None or not fitting:
        raise ValueError(
            f"The head of the file reads {parts} features of the width of a token, which does not fit "
            f"{f'cls_type={given!r}' if given else 'any published read-out'}."
        )
    if parts is not None and len(fitting) > 1:
        raise ValueError(
            f"The head of the file reads {parts} features of the width of a token: 'cls_type' can be "
            f"{' or '.join(map(repr, fitting))}. Give the one of its training in the configuration."
        )
    return fitting[0]
