"""Published files of PointLoRA (github.com/songw-zju/PointLoRA)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..published import PublishedAdapter, module_names, read_size, size_in, split_published
from .config import PointLoRAConfig

# By the names in a published file, those of the parts that all blocks share.
_SHARED = {
    "lora_mask_predictor.fc1": "scorer.down",
    "lora_mask_predictor.fc2": "scorer.up",
    "blocks.prompt_mlp.0": "patch_mlp.down",
    "blocks.prompt_mlp.2": "patch_mlp.up",
    "blocks.prompt_pos_mlp.0": "selected_mlp.down",
    "blocks.prompt_pos_mlp.2": "selected_mlp.up",
    "blocks.prompt_qkv_mlp.0": "qkv_mlp.down",
    "blocks.prompt_qkv_mlp.2": "qkv_mlp.up",
    "blocks.prompt_proj_mlp.0": "out_mlp.down",
    "blocks.prompt_proj_mlp.2": "out_mlp.up",
}
_LAYER = r"blocks\.blocks\.(\d+)\.attn\."
_WAYS = {"A": "down_weight", "B": "up_weight"}
_RULES = {
    rf"({'|'.join(map(re.escape, _SHARED))})\.(\w+)": lambda m: f"encoder.token_slot.pointlora_{_SHARED[m[1]]}_{m[2]}",
    # Queries, keys and values share the way down, and are rows of one way up.
    rf"{_LAYER}qkv\.lora_A": lambda m: f"encoder.layers.{m[1]}.entry_slot.pointlora_qkv_low_rank.down_weight",
    rf"{_LAYER}qkv\.lora_B": lambda m: [
        f"encoder.layers.{m[1]}.attention.{name}_proj_slot.pointlora_low_rank.up_weight" for name in "qkv"
    ],
    rf"{_LAYER}proj\.lora_([AB])": lambda m: (
        f"encoder.layers.{m[1]}.attention.out_proj_slot.pointlora_low_rank.{_WAYS[m[2]]}"
    ),
}
# It has the name of the layer's own weight, which is called `linear.weight`.
_FACTOR = re.compile(rf"{_LAYER}(qkv|proj)\.weight")
_TRAINED = ("first_linear1", "first_norm1", "first_linear2")


def read_published(
    tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], model_type: str
) -> PublishedAdapter:
    """Read the adapter out of a published file.

    The options in `settings`: `rank`, `mlp_hidden`, `scales`, `mask_loss_weight`, `second_scale_weight`.
    """
    factors = {name: tensor for name, tensor in tensors.items() if _FACTOR.fullmatch(name)}
    for name, tensor in factors.items():
        _check_factor(name, tensor)
    unused = dict.fromkeys(factors, "it is the factor of a shared MLP, and 1")
    used = {name: tensor for name, tensor in tensors.items() if name not in factors}
    weights, base = split_published(used, _RULES, model_type)
    base = {re.sub(rf"^({_LAYER}(?:qkv|proj))\.linear\.", r"\1.", name): tensor for name, tensor in base.items()}
    rank = size_in(weights, "qkv_low_rank.down_weight", "PointLoRA", "blocks.blocks.0.attn.qkv.lora_A")
    width = size_in(weights, "pointlora_patch_mlp.down_weight", "PointLoRA", "blocks.prompt_mlp.0.weight")
    options: dict[str, Any] = {}
    if "scales" in settings:
        options["scales"] = [list(scale) for scale in settings["scales"]]
    scales = options.get("scales", PointLoRAConfig().scales)
    weight = settings.get("mask_loss_weight", 0.004)
    second = settings.get("second_scale_weight", 0.25)
    config = PointLoRAConfig(
        r=read_size(settings, "rank", rank),
        bottleneck_size=read_size(settings, "mlp_hidden", width),
        mask_loss_weights=[weight * (second if index else 1) for index in range(len(scales))],
        train_scores_by_task=False,
        confident_scores=False,
        modules_to_save=[
            *module_names(base),
            "position_embedding",
            *(f"patch_embedding.{name}" for name in _TRAINED),
        ],
        **options,
    )
    switches = (
        "train_scores_by_task=False, confident_scores=False: trained on, the scores learn nothing from the task",
    )
    return PublishedAdapter(config, weights, base, switches, unused)


def _check_factor(name: str, tensor: torch.Tensor) -> None:
    if tensor.numel() != 1:
        raise ValueError(
            f"{name!r} has shape {tuple(tensor.shape)}. In a file of PointLoRA it is the factor of a shared MLP, one "
            "number; the weight of the layer is called `linear.weight`. Is the file of another method?"
        )
    if float(tensor) != 1:
        raise ValueError(
            f"{name!r}, the factor of a shared MLP, is {float(tensor):g}. Published training leaves it at 1, and "
            "nothing else can be represented. Multiply the MLP's last layer by it where all blocks have the same."
        )
