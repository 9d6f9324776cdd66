"""Published files of GAPrompt (github.com/zhoujiahuan1991/ICML2025-GAPrompt)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..published import PublishedAdapter, Rules, module_names, read_size, split_published
from .config import GAPromptConfig

# By the names in a published file, parts here and their tensors.
_CHAINS = {
    "abstraction_level1": "fine",
    "abstraction_level2": "coarse",
    "propagation1": "back_to_points",
    "propagation2": "back_to_fine",
}
_POINT_PARTS = {
    "shift_net.mlp_position.0": "shift_head.hidden_",
    "shift_net.mlp_position.3": "shift_head.output_",
    "shape_feature_mlp.0": "shape_head.",
}
_BLOCK_PARTS = {
    "adapter.layer_norm": "bottleneck.norm_",
    "adapter.ln1": "bottleneck.down_",
    "adapter.ln2": "bottleneck.up_",
    "out_transform.0": "pooled_bn.",
}
_PROMPTS = re.compile(r"blocks\.blocks\.(\d+)\.prompt_embeddings")
_UNUSED = re.compile(r"blocks\.blocks\.\d+\.(adapter\.scale\.(?:weight|bias)|scaler[12])")
_POINTS = "gaprompt_point_prompts.coordinates"
_OPTIONS = {"point_scale": "factor", "shift_scale": "perturbation", "prompt_depth": "prompt_depth"}
_RULES = {"permutation": "shifted", "replacement": "replacement"}


def read_published(
    tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], model_type: str
) -> PublishedAdapter:
    """Read the adapter out of a published file.

    The options in `settings`: `propagation_type`, `factor`, `perturbation`, `prompt_depth`, `point_number`,
    `num_tokens`, `adapter_dim`, `scaler`, `neighbors_fp1_fp2_propagate`.
    """
    rule, place = _read_rule(settings)
    depth = settings.get("prompt_depth", GAPromptConfig.prompt_depth)
    unused = {name: reason for name in tensors if (reason := _unused(name, depth))}
    used = {name: tensor for name, tensor in tensors.items() if name not in unused}
    weights, base = split_published(used, _rules(place), model_type)
    weights = {name: _as_linear(name, tensor) for name, tensor in weights.items()}
    points = _find(weights, _POINTS)
    downs = _find(weights, "gaprompt_bottleneck.down_bias")
    neighbors = settings.get("neighbors_fp1_fp2_propagate", (32, 32, 64))
    config = GAPromptConfig(
        num_points=read_size(settings, "point_number", len(points)),
        num_prompt_tokens=read_size(settings, "num_tokens", len(_find(weights, "prompt_places.coordinates"))),
        bottleneck_size=read_size(settings, "adapter_dim", len(downs)),
        propagation=rule,
        propagation_place=place,
        num_point_neighbors=neighbors[0],
        num_center_neighbors=neighbors[1],
        num_propagation_neighbors=neighbors[2],
        modules_to_save=module_names(base),
        **{field: settings[name] for field, name in _OPTIONS.items() if name in settings},
    )
    return PublishedAdapter(config, weights, base, _switches(config), unused)


def _read_rule(settings: Mapping[str, Any]) -> tuple[str, str]:
    kind = settings.get("propagation_type", "permutation_after_attention")
    match = re.fullmatch(r"(permutation|replacement)_(before|after)_attention", str(kind))
    if match is None:
        raise ValueError(
            f"propagation_type={kind!r} is not known. Published are permutation_ and replacement_, each with "
            "after_attention or before_attention."
        )
    for name, only in (("scaler", False), ("shift_net", True), ("point_prompt", True)):
        if settings.get(name, only) is not only:
            raise ValueError(f"{name}={settings[name]!r} is not supported; published files have {name}={only}.")
    return _RULES[match[1]], match[2]


def _unused(name: str, depth: int | None) -> str | None:
    """Why a tensor has no say in what the model computes; `None` if it has."""
    if _UNUSED.fullmatch(name):
        return "the published forward pass does not use it"
    prompts = _PROMPTS.fullmatch(name)
    if prompts and depth is not None and int(prompts[1]) >= depth:
        return f"no prompts join the blocks from {depth} on"
    return None


def _rules(place: str) -> Rules:
    chains, points = "|".join(_CHAINS), "|".join(map(re.escape, _POINT_PARTS))
    parts = "|".join(map(re.escape, _BLOCK_PARTS))
    norm_slot = "entry_slot" if place == "before" else "output_slot"

    def in_block(match: re.Match) -> str:
        slot = norm_slot if match[2] == "out_transform.0" else "output_slot"
        return f"encoder.layers.{match[1]}.{slot}.gaprompt_{_BLOCK_PARTS[match[2]]}{match[3]}"

    return {
        rf"shift_net\.({chains})\.mlp_convs\.(\d)\.(\w+)": lambda m: (
            f"point_slot.gaprompt_{_CHAINS[m[1]]}_{m[2]}.linear_{m[3]}"
        ),
        rf"shift_net\.({chains})\.mlp_bns\.(\d)\.(\w+)": lambda m: (
            f"point_slot.gaprompt_{_CHAINS[m[1]]}_{m[2]}.{m[3]}"
        ),
        rf"({points})\.(\w+)": lambda m: f"point_slot.gaprompt_{_POINT_PARTS[m[1]]}{m[2]}",
        r"point_prompt\.points": lambda m: f"point_slot.{_POINTS}",
        r"prompt_cor": lambda m: "encoder.token_slot.gaprompt_prompt_places.coordinates",
        r"shape_feature_mlp\.3\.(\w+)": lambda m: f"encoder.token_slot.gaprompt_shape_projection.{m[1]}",
        _PROMPTS.pattern: lambda m: f"encoder.layers.{m[1]}.entry_slot.gaprompt_prompt_tokens.weight",
        rf"blocks\.blocks\.(\d+)\.({parts})\.(\w+)": in_block,
    }


def _as_linear(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Convolutions of kernel size 1 as linear layers, and the added points without a batch dimension."""
    if name.endswith(_POINTS):
        return tensor.flatten(0, -2)
    return tensor.flatten(1) if tensor.ndim > 2 else tensor


def _find(weights: Mapping[str, torch.Tensor], ending: str) -> torch.Tensor:
    found = next((tensor for name, tensor in weights.items() if name.endswith(ending)), None)
    if found is None:
        raise ValueError(f"the file lacks what becomes {ending!r} here. Is it complete?")
    return found


def _switches(config: GAPromptConfig) -> tuple[str, ...]:
    if config.propagation == "replacement":
        return ("propagation='replacement': the last patch tokens give their rows to the prompts",)
    return (
        "propagation='shifted': local groups take tokens as many rows further to the front as there are prompts. The "
        "published code reads other clouds of the batch there, so its results hold for single clouds only",
    )
