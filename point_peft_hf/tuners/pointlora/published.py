"""Published files of PointLoRA (github.com/songw-zju/PointLoRA)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..published import PublishedAdapter, module_names, read_size
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
_ATTENTION = re.compile(r"blocks\.blocks\.(\d+)\.attn\.(qkv|proj)\.(lora_A|lora_B|weight|linear\.weight|linear\.bias)")
_TRAINED = ("first_linear1", "first_norm1", "first_linear2")


def read_published(
    tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], model_type: str
) -> PublishedAdapter:
    """Read the adapter out of a published file.

    Args:
        tensors: Tensors by their names in the file.
        settings: Options by their published names: `rank`, `mlp_hidden`, `scales`, `mask_loss_weight`,
            `second_scale_weight`.
        model_type: The model type of the backbone.

    Returns:
        The adapter, and what is left of the file.

    Raises:
        ValueError: If a factor of a shared MLP, which training leaves at 1, is another number.
    """
    encoder = f"base_model.model.{model_type}.encoder"
    weights, base, unused = {}, {}, {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        match = _ATTENTION.fullmatch(name)
        if module in _SHARED:
            weights[f"{encoder}.token_slot.pointlora_{_SHARED[module]}_{kind}"] = tensor
        elif match is None:
            base[name] = tensor
        elif match[3].startswith("lora_"):
            weights |= _low_rank(f"{encoder}.layers.{match[1]}", match[2], match[3], tensor)
        elif match[3].startswith("linear."):
            base[name.replace(".linear.", ".")] = tensor
        else:
            # It has the name of the layer's own weight, which is called `linear.weight`.
            _check_factor(name, tensor)
            unused[name] = "it is the factor of a shared MLP, and 1"
    downs = [tensor for name, tensor in weights.items() if name.endswith("qkv_low_rank.down_weight")]
    mlp = weights.get(f"{encoder}.token_slot.pointlora_patch_mlp.down_weight")
    if not downs or mlp is None:
        missing = "blocks.prompt_mlp.0.weight" if downs else "blocks.blocks.0.attn.qkv.lora_A"
        raise ValueError(f"A file of PointLoRA has {missing!r}; this one does not.")
    options: dict[str, Any] = {}
    if "scales" in settings:
        options["scales"] = [list(scale) for scale in settings["scales"]]
    scales = options.get("scales", PointLoRAConfig().scales)
    weight = settings.get("mask_loss_weight", 0.004)
    second = settings.get("second_scale_weight", 0.25)
    config = PointLoRAConfig(
        r=read_size(settings, "rank", len(downs[0])),
        bottleneck_size=read_size(settings, "mlp_hidden", len(mlp)),
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


def _low_rank(layer: str, module: str, way: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights of a low-rank update: queries, keys and values share the way down and are rows of one way up."""
    if module == "proj":
        kind = "down_weight" if way == "lora_A" else "up_weight"
        return {f"{layer}.attention.out_proj_slot.pointlora_low_rank.{kind}": tensor}
    if way == "lora_A":
        return {f"{layer}.entry_slot.pointlora_qkv_low_rank.down_weight": tensor}
    return {
        f"{layer}.attention.{name}_slot.pointlora_low_rank.up_weight": rows
        for name, rows in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True)
    }


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
