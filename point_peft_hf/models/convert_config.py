"""Configurations of published checkpoints: what the tensors say, and what is known of the published models."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from .convert_checks import size_of
from .convert_parts import segmentation_sizes

# Names of the research repositories' configurations, and what they are called here.
_COMMON_FIELDS = {"num_heads": "num_attention_heads", "num_classes": "num_labels", "cls_dim": "num_labels"}
_SINGLE_STAGE_FIELDS = {
    "trans_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_group": "num_groups",
    **_COMMON_FIELDS,
}
_RESEARCH_FIELDS = {
    "point_mae": {
        **_SINGLE_STAGE_FIELDS,
        "decoder_depth": "decoder_num_hidden_layers",
        "decoder_num_heads": "decoder_num_attention_heads",
    },
    "point_bert": {**_SINGLE_STAGE_FIELDS, "encoder_dims": "patch_embedding_size"},
    "point_gpt": {
        **_SINGLE_STAGE_FIELDS,
        "decoder_depth": "generator_num_hidden_layers",
        "keep_attend": "num_seen_groups",
    },
    "point_m2ae": {
        **_COMMON_FIELDS,
        "encoder_dims": "hidden_sizes",
        "encoder_depths": "depths",
        "num_groups": "num_groups",
        "local_radius": "attention_radii",
        "decoder_depths": "decoder_depths",
    },
    "recon": _SINGLE_STAGE_FIELDS,
}
_SAME_FIELDS = ("group_size", "group_sizes", "mlp_ratio", "drop_path_rate", "mask_ratio", "layer_norm_eps")
_RESEARCH_MARKS = ("trans_dim", "encoder_dims", "num_group")

# Number of groups of the published classifiers on clouds that are denser than 1024 points, by part of their name.
_DENSE_GROUPS = {"4k": 256, "8k": 512}
SCANOBJECTNN_LABELS = 15
# Licences of the published weights: those of the repositories that they are published in. ACT and PCP-MAE, which are
# files of a Point-MAE, have the same one.
WEIGHTS_LICENSES = dict.fromkeys(("point_bert", "point_gpt", "point_m2ae", "point_mae", "recon"), "mit")
# Attention heads of PointGPT-S, -B and -L, by width.
_GPT_HEADS = {384: 6, 768: 12, 1024: 16}


def infer_sizes(model_type: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read the fields of the configuration that follow from the shapes of the tensors, by research name."""
    reader = {"point_m2ae": _infer_point_m2ae, "point_gpt": _infer_point_gpt}.get(model_type, _infer_single_stage)
    try:
        sizes = reader(model_type, shapes)
    except KeyError as error:
        raise ValueError(
            f"The checkpoint has no tensor {error.args[0]!r}, so it does not hold the whole encoder of a "
            f"{model_type}. Check `model_type`, and whether the file is complete."
        ) from None
    if "cls_head_finetune.0.weight" in shapes:
        sizes["classifier_hidden_size"] = size_of(shapes, "cls_head_finetune.0.weight")
        output = "cls_head_finetune.3.weight" if model_type == "point_bert" else "cls_head_finetune.8.weight"
        if output in shapes:
            sizes["num_labels"] = size_of(shapes, output)
    return sizes


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """How many numbers `pattern` catches among the names, which must be those from 0 on."""
    numbers = {int(match[1]): name for name in shapes if (match := re.match(pattern, name))}
    if numbers and len(numbers) <= (last := max(numbers)):
        gap = next(number for number in range(last) if number not in numbers)
        raise ValueError(
            f"The checkpoint has {numbers[last]!r}, but no tensor with the number {gap} instead of {last}. Is the "
            "file complete?"
        )
    return len(numbers)


def _mlp_ratio(shapes: Mapping[str, tuple[int, ...]], linear: str) -> float:
    intermediate_size, hidden_size = (size_of(shapes, f"{linear}.weight", axis) for axis in (0, 1))
    ratio = intermediate_size / hidden_size
    # Rounding must not lose a unit when the width is computed from the ratio.
    return ratio if int(hidden_size * ratio) == intermediate_size else math.nextafter(ratio, math.inf)


def _patch_hidden_sizes(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> list[int]:
    return [size_of(shapes, f"{prefix}.{name}.weight") for name in ("first_conv.0", "first_conv.3", "second_conv.0")]


def _infer_single_stage(model_type: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    sizes = {
        "hidden_size": size_of(shapes, "blocks.blocks.0.norm1.weight"),
        "num_hidden_layers": _count(shapes, r"blocks\.blocks\.(\d+)\."),
        "patch_hidden_sizes": _patch_hidden_sizes(shapes, "encoder"),
        "position_hidden_size": size_of(shapes, "pos_embed.0.weight"),
        "mlp_ratio": _mlp_ratio(shapes, "blocks.blocks.0.mlp.fc1"),
        "qkv_bias": "blocks.blocks.0.attn.qkv.bias" in shapes,
    }
    if model_type == "point_bert":
        sizes["patch_embedding_size"] = size_of(shapes, "reduce_dim.weight", 1)
        return sizes
    if model_type == "recon":
        return sizes
    if size_of(shapes, "pos_embed.0.weight", 1) != 3:
        # PCP-MAE.
        sizes["position_embedding"] = "sincos"
    sizes.update(segmentation_sizes(shapes))
    if "increase_dim.0.weight" in shapes and (depth := _count(shapes, r"MAE_decoder\.blocks\.(\d+)\.")):
        sizes["decoder_num_hidden_layers"] = depth
        sizes["group_size"] = size_of(shapes, "increase_dim.0.weight") // 3
    return sizes


def _infer_point_gpt(model_type: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    convs = [name for name in ("first_conv.0", "first_conv.3", "first_conv.6") if f"encoder.{name}.weight" in shapes]
    # Of the two names of a layer, that of the research repository and that of torch-pointcloud.
    linear = "mlp.0" if "blocks.layers.0.mlp.0.weight" in shapes else "mlp.fc1"
    sizes = {
        "hidden_size": size_of(shapes, "blocks.ln_f.weight"),
        "num_hidden_layers": _count(shapes, r"blocks\.layers\.(\d+)\."),
        "patch_hidden_sizes": [size_of(shapes, f"encoder.{name}.weight") for name in (*convs, "second_conv.0")],
        "mlp_ratio": _mlp_ratio(shapes, f"blocks.layers.0.{linear}"),
        "qkv_bias": "blocks.layers.0.attn.in_proj_bias" in shapes,
        **segmentation_sizes(shapes),
    }
    if depth := _count(shapes, r"generator_blocks\.layers\.(\d+)\."):
        sizes["generator_num_hidden_layers"] = depth
        sizes["group_size"] = size_of(shapes, "generator_blocks.increase_dim.0.weight") // 3
    return sizes


def _infer_point_m2ae(model_type: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    num_stages = _count(shapes, r"h_encoder\.token_embed\.(\d+)\.")
    blocks = "h_encoder.encoder_blocks"
    sizes = {
        "hidden_sizes": [
            size_of(shapes, f"{blocks}.{stage}.blocks.0.norm1.weight") for stage in range(max(num_stages, 1))
        ],
        "depths": [
            _count(shapes, rf"h_encoder\.encoder_blocks\.{stage}\.blocks\.(\d+)\.") for stage in range(num_stages)
        ],
        "patch_hidden_sizes": _patch_hidden_sizes(shapes, "h_encoder.token_embed.0"),
        "mlp_ratio": _mlp_ratio(shapes, f"{blocks}.0.blocks.0.mlp.fc1"),
        "qkv_bias": f"{blocks}.0.blocks.0.attn.qkv.bias" in shapes,
    }
    if "cls_head_finetune.0.weight" in shapes:
        pooled = size_of(shapes, "cls_head_finetune.0.weight", 1)
        sizes["pooling"] = "sum" if pooled == sizes["hidden_sizes"][-1] else "concat"
    num_decoder_stages = _count(shapes, r"h_decoder\.(\d+)\.")
    if num_decoder_stages and "rec_head.weight" in shapes and num_stages == 3:
        # The decoder predicts as many points as a group of the first stage has; the others have half of them.
        group_size = size_of(shapes, "rec_head.weight") // 3
        sizes["group_sizes"] = [group_size, group_size // 2, group_size // 2]
    if num_decoder_stages:
        sizes["decoder_depths"] = [
            _count(shapes, rf"h_decoder\.{stage}\.blocks\.(\d+)\.") for stage in range(num_decoder_stages)
        ]
        sizes["decoder_propagation_depths"] = [
            _count(shapes, rf"token_prop\.{stage}\.extraction\.operation\.(\d+)\.")
            for stage in range(num_decoder_stages - 1)
        ]
    return sizes


def published_settings(model_type: str, sizes: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """The fields that no tensor shows, as in the published model: heads, groups, their sizes and radii.

    A classifier of 15 classes is taken for one of ScanObjectNN; "scanobjectnn", "shapenetpart", "4k" and "8k" in the
    name of the file or repository are understood.
    """
    # Only the last part: folders further up may be called anything.
    parts = [part for part in re.split(r"[/\\]", name.lower()) if part and part != "model.safetensors"]
    name = parts[-1] if parts else ""
    is_scan = "scanobjectnn" in name or sizes.get("num_labels") == SCANOBJECTNN_LABELS
    return {**_settings(model_type, sizes, name, is_scan), "weights_license": WEIGHTS_LICENSES[model_type]}


def _settings(model_type: str, sizes: Mapping[str, Any], name: str, is_scan: bool) -> dict[str, Any]:
    if model_type == "point_m2ae":
        settings = {
            "num_attention_heads": 6,
            "num_groups": [512, 256, 64],
            "group_sizes": [32, 16, 16] if is_scan else [16, 8, 8],
            "attention_radii": [0.32, 0.64, 1.28],
        }
        if len(sizes["hidden_sizes"]) != 3:
            settings = {"num_attention_heads": 6}
        if sizes.get("num_labels") == 40:
            settings["label_smoothing"] = 0.3
        return settings
    settings = {"num_attention_heads": 6, "num_groups": 64, "group_size": 32}
    if model_type == "point_gpt":
        settings["num_attention_heads"] = _GPT_HEADS.get(sizes["hidden_size"], 6)
    if model_type in ("point_mae", "point_gpt", "recon") and (
        is_scan or "shapenetpart" in name or "num_categories" in sizes
    ):
        settings["num_groups"] = 128
    for part, num_groups in _DENSE_GROUPS.items():
        if re.search(rf"(?<![a-z0-9]){part}(?![a-z0-9])", name):
            settings["num_groups"] = num_groups
    return settings


def read_options(path: str | Path, what: str) -> dict[str, Any]:
    """Read the JSON object in a file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no configuration file {str(path)!r}. Leave it out for the published settings.")
    try:
        options = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"The configuration {str(path)!r} is not a JSON file: {error}.") from None
    if not isinstance(options, dict):
        raise ValueError(
            f"The configuration {str(path)!r} must be a JSON object with {what}, got {type(options).__name__}."
        )
    return options


def read_config_file(path: str | Path, model_type: str) -> dict[str, Any]:
    """Read the fields that a user gives for a conversion from a JSON file.

    They are fields of the configuration class, or a configuration in the names of the research repositories
    ("trans_dim", "num_heads", "num_group", ...), of which only what is needed is taken.
    """
    fields = read_options(path, "the fields of the model")
    if fields.get("model_type", model_type) != model_type:
        raise ValueError(
            f"The configuration {str(path)!r} is for model_type={fields['model_type']!r}, but the checkpoint is to be "
            f"converted as {model_type!r}."
        )
    inner = fields.get("model")
    fields = inner if isinstance(inner, dict) else fields
    if any(mark in fields for mark in _RESEARCH_MARKS):
        known = _research_fields(model_type)
        return {known[name]: value for name, value in fields.items() if name in known}
    return {name: value for name, value in fields.items() if name not in ("architectures", "model_type", "dtype")}


def _research_fields(model_type: str) -> dict[str, str]:
    return {**_RESEARCH_FIELDS[model_type], **{name: name for name in _SAME_FIELDS}}


def backbone_fields(settings: Mapping[str, Any], model_type: str, config_class: type) -> dict[str, Any]:
    """The fields of a backbone among the options of a method that was trained on it.

    They have the names of the research repositories or of the configuration class.
    """
    own = {*config_class.__dataclass_fields__, "num_labels"} - {*PreTrainedConfig.__dataclass_fields__, "model_type"}
    known = {**{name: name for name in own}, **_research_fields(model_type)}
    return {known[name]: settings[name] for name in settings if name in known}
