"""Published files of DAPT (github.com/LMD0311/DAPT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..published import PublishedAdapter, head_parts, module_names, option, read_size, size_in, split_published
from .config import DAPTConfig

_KINDS = {"gamma": "scale", "beta": "shift"}
_ADAPTER = {"adapter_layer_norm_before": "norm", "scale": "scale", "down_proj": "down", "up_proj": "up"}
_OF_BLOCK = ("norm1_slot.dapt_scale_shift", "norm2_slot.dapt_scale_shift", "output_slot.dapt_internal_prompt")
_BLOCK, _TFTS = r"blocks\.blocks\.(\d+)\.", r"tfts_(gamma|beta)_"
_RULES = {
    rf"{_TFTS}1": lambda m: f"patch_embedding_slot.dapt_scale_shift.{_KINDS[m[1]]}",
    rf"{_TFTS}2": lambda m: f"layernorm_slot.dapt_scale_shift.{_KINDS[m[1]]}",
    rf"{_BLOCK}{_TFTS}([123])": lambda m: f"encoder.layers.{m[1]}.{_OF_BLOCK[int(m[3]) - 1]}.{_KINDS[m[2]]}",
    rf"{_BLOCK}mlp\.{_TFTS}([12])": lambda m: (
        f"encoder.layers.{m[1]}.mlp.fc{m[3]}_slot.dapt_scale_shift.{_KINDS[m[2]]}"
    ),
    rf"{_BLOCK}attn\.{_TFTS}1": lambda m: [
        f"encoder.layers.{m[1]}.attention.{name}_proj_slot.dapt_scale_shift.{_KINDS[m[2]]}" for name in "qkv"
    ],
    rf"{_BLOCK}attn\.{_TFTS}2": lambda m: (
        f"encoder.layers.{m[1]}.attention.out_proj_slot.dapt_scale_shift.{_KINDS[m[2]]}"
    ),
    rf"{_BLOCK}Adapter_MLP\.({'|'.join(_ADAPTER)})\.(weight|bias)": lambda m: (
        f"encoder.layers.{m[1]}.ffn_slot.dapt_dynamic_adapter.{_ADAPTER[m[2]]}_{m[3]}"
    ),
}
_READOUT = ("class_token", "prompt_token", "patch_token")
# What the head of the published configurations reads: of ScanObjectNN's hardest variant, and of ModelNet40.
_PUBLISHED = {"class_token": "use", "prompt_token": "mean", "patch_token": "max"}
_MODELNET40 = {"class_token": "use", "prompt_token": None, "patch_token": "max"}
_MODELNET40_LABELS = 40


def read_published(
    tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], model_type: str
) -> PublishedAdapter:
    """Read the adapter out of a published file.

    The options in `settings`: `rank`, `class_token`, `prompt_token`, `patch_token`, `dropout`.
    """
    weights, base = split_published(tensors, _RULES, model_type)
    rank = size_in(weights, "dynamic_adapter.down_weight", "DAPT", "blocks.blocks.0.Adapter_MLP.down_proj.weight")
    readout = _readout(settings, base)
    config = DAPTConfig(
        bottleneck_size=read_size(settings, "rank", rank),
        dropout=settings.get("dropout", DAPTConfig().dropout),
        class_token=readout["class_token"] is not None,
        prompt_pooling=readout["prompt_token"],
        patch_pooling=readout["patch_token"],
        position="once",
        modules_to_save=module_names(base),
    )
    switches = ("position='once': position embeddings are added in front of the first block only",)
    return PublishedAdapter(config, weights, base, switches)


def _readout(settings: Mapping[str, Any], base: Mapping[str, torch.Tensor]) -> dict[str, str | None]:
    """The options of the read-out, which have to agree with the width of the head."""
    output = base.get("cls_head_finetune.8.weight")
    is_modelnet40 = output is not None and len(output) == _MODELNET40_LABELS
    readout = {name: option(settings, name, (_MODELNET40 if is_modelnet40 else _PUBLISHED)[name]) for name in _READOUT}
    parts, count = head_parts(base), sum(value is not None for value in readout.values())
    if parts is not None and parts != count:
        raise ValueError(
            f"The head of the file reads {parts} features of the width of a token, but {readout} are {count}. Give "
            "the options of the file's training in the configuration: 'class_token' ('use' or null), 'prompt_token' "
            "('mean', 'max' or null) and 'patch_token' ('max' or null)."
        )
    return readout
