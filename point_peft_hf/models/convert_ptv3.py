"""Published checkpoints of the Point Transformer V3 family -> tensors and configuration of this package.

Widths, depths, decoder and heads for classes are read from the tensors. What no tensor says (attention heads, patches,
strides) is in the file of Sonata, Concerto and Utonia, or as in the published models. How a supervised model was
trained, which changes what its weights compute, is in no file: it has to be said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..ops import rope_frequencies
from .convert_checks import check_values, size_of
from .convert_families import recognize_family
from .convert_ptv3_keys import (
    ROPE,
    is_inside,
    is_left_out,
    is_torch_pointcloud,
    research_names,
    target_name,
    with_stem,
)

# What is to be said of a file that does not say it itself: fields of the configuration by variant.
VARIANTS: dict[str, dict[str, Any]] = {
    "ptv3": {"stem": "sparse", "legacy_position_features": True},
    "ptv3-repaired": {"stem": "sparse", "legacy_position_features": False},
    "sonata": {"stem": "linear", "rope_base": None},
    "concerto": {"stem": "linear", "rope_base": None},
    "utonia": {"stem": "linear", "rope_base": 10, "grid_size": 0.01},
}
# Of the weights that Sonata, Concerto and Utonia were published with, and of the supervised ones.
LICENSES = {"linear": "cc-by-nc-4.0", "sparse": "mit"}
# Names of the arguments of the published models, and what they are called here.
_ARGUMENTS = {
    "in_channels": "in_channels",
    "order": "orders",
    "stride": "strides",
    "enc_depths": "depths",
    "enc_channels": "hidden_sizes",
    "enc_num_head": "num_attention_heads",
    "enc_patch_size": "patch_sizes",
    "dec_depths": "decoder_depths",
    "dec_channels": "decoder_hidden_sizes",
    "dec_num_head": "decoder_num_attention_heads",
    "dec_patch_size": "decoder_patch_sizes",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "attn_drop": "attention_dropout",
    "proj_drop": "hidden_dropout",
    "drop_path": "drop_path_rate",
    "layer_scale": "layer_scale",
    "shuffle_orders": "shuffle_orders",
    "enable_rpe": "relative_positions",
    "rope_base": "rope_base",
}
# Fields that a file may leave open, which `from_pretrained` then takes.
UNTOLD = (
    "legacy_position_features",
    "num_attention_heads",
    "decoder_num_attention_heads",
    "patch_sizes",
    "rope_base",
)
# Arguments of which only this value is understood: with another, a model would compute something else.
_ONLY = {"pre_norm": True, "qk_scale": None}
_FEATURES = {3: ["coordinates"], 6: ["colors", "normals"], 9: ["coordinates", "colors", "normals"]}
_HEAD_SIZE = 16
# Where scales of a new model start; those of a file are in it.
_LAYER_SCALE = 1e-5
_PATCH_SIZE, _TABLE_PATCH_SIZE = 1024, 128


def read_arguments(path: Path) -> dict[str, Any]:
    """The arguments of the published model, which are in its file, or in `config.json` in the same folder."""
    if path.suffix == ".safetensors":
        config = path.with_name("config.json")
        found = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    else:
        # It has been read before, and is what it should be.
        found = torch.load(path, map_location="meta", weights_only=True)
        found = found.get("config") if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) and "enc_channels" in found else {}


def convert_ptv3(
    tensors: Mapping[str, torch.Tensor],
    given: Mapping[str, Any],
    arguments: Mapping[str, Any],
    variant: str | None,
    name: str,
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[str, ...]], dict[str, Any], dict[str, Any]]:
    """Bring a published model to the names and shapes of this package.

    Args:
        tensors: Tensors by name in the file.
        given: Fields of the configuration that the user gives.
        arguments: Arguments of the published model, from [`read_arguments`].
        variant: One of `VARIANTS`, or `None`.
        name: Name of the file, for messages.

    Returns:
        Tensors by name here; by name here, the names in the file; the fields; those of them that are assumed.

    Raises:
        ValueError: If the file is of another model, incomplete, contradicts the arguments, or does not say what it is.
    """
    name = name or "the checkpoint"
    converted, sources, names = rename_ptv3(tensors, name)
    shapes = {names[key]: tuple(tensor.shape) for key, tensor in tensors.items()}
    try:
        sizes = _sizes(shapes)
    except KeyError as error:
        raise ValueError(
            f"{name!r} has no tensor {error.args[0]!r}, so it does not hold a whole encoder of the Point Transformer "
            "V3 family. A file with nothing but a head is loaded into a model with `load_checkpoint`."
        ) from None
    told = {**_fields_of(arguments, name), **given}
    # Which attention is meant, and how many heads it has, where the file has nothing but tensors.
    frequencies = [tensor for key, tensor in tensors.items() if ROPE.fullmatch(names[key])]
    if frequencies:
        sizes |= _rotation(frequencies, sizes, told, name)
    elif variant == "utonia" and told.get("rope_base") is None:
        raise ValueError(
            f"`variant`='utonia' has rotations of attention, but {name!r} has no `attn.rope.inv_freq`, as all files "
            "of Utonia have. If it is one all the same, give `rope_base` in the configuration."
        )
    for field, value in _variant_fields(variant, sizes, name).items():
        told.setdefault(field, value)
        _check_same(field, told[field], value, f"variant={variant!r}", name)
    for field, value in sizes.items():
        _check_same(field, told.get(field, value), value, "its tensors", name)
    if any(research_name.endswith(".ls1.0.gamma") for research_name in shapes):
        told.setdefault("layer_scale", _LAYER_SCALE)
    if is_torch_pointcloud(tensors) and sizes["stem"] == "sparse":
        # It has the function that the released weights were trained with, and no other.
        told.setdefault("legacy_position_features", True)
    _check_decided({**sizes, **told}, name)
    fields, assumed = _complete({**told, **sizes})
    return converted, sources, fields, assumed


def rename_ptv3(
    tensors: Mapping[str, torch.Tensor], name: str
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[str, ...]], dict[str, str]]:
    """Rename and reshape the tensors of a model, or of a head alone.

    Returns:
        Tensors by name here; by name here, the names in the file; by name in the file, the research names.
    """
    names = with_stem(research_names(tensors), {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    family = recognize_family(names.values())
    if family is not None:
        raise ValueError(f"{name!r} is of {family[0].name}: it has {family[1]!r}. {family[0].advice}")
    converted: dict[str, torch.Tensor] = {}
    sources: dict[str, tuple[str, ...]] = {}
    for key, tensor in tensors.items():
        if is_left_out(names[key]):
            continue
        target = target_name(names[key])
        if target is None:
            if is_inside(names[key]):
                raise ValueError(
                    f"{name!r} has {key!r} inside of the model. A ptv3 has no such tensor, and would compute "
                    "something else without it. The file is of a model or a method that this package does not know."
                )
            continue
        if target in converted:
            raise ValueError(f"{name!r} has {sources[target][0]!r} and {key!r}, which are the same tensor of a ptv3.")
        # spconv keeps the outputs first: (out, x, y, z, in) -> (x, y, z, in, out).
        converted[target] = tensor.permute(1, 2, 3, 4, 0).contiguous() if tensor.ndim == 5 else tensor
        sources[target] = (key,)
    check_values(converted, sources, name)
    return converted, sources, names


# -- What the tensors show ------------------------------------------------------------------------------------------


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    depths = _depths(shapes, "enc")
    if not depths:
        raise KeyError("enc.enc0.block0.norm1.0.weight")
    blocks = [f"enc.enc{stage}.block0" for stage in range(len(depths))]
    first = "embedding.stem.conv.weight"
    is_sparse = first in shapes
    width = size_of(shapes, f"{blocks[0]}.norm1.0.weight")
    is_batch = "embedding.stem.norm.running_mean" in shapes
    sizes = {
        "depths": depths,
        "hidden_sizes": [size_of(shapes, f"{block}.norm1.0.weight") for block in blocks],
        "in_channels": size_of(shapes, first if is_sparse else "embedding.stem.linear.weight", 4 if is_sparse else 1),
        "stem": "sparse" if is_sparse else "linear",
        "norm": "batch" if is_batch else "layer",
        "mlp_ratio": size_of(shapes, f"{blocks[0]}.mlp.0.fc1.weight") / width,
        "qkv_bias": f"{blocks[0]}.attn.qkv.bias" in shapes,
        "relative_positions": f"{blocks[0]}.attn.rpe.rpe_table" in shapes,
    }
    # As published: what has the one has the other.
    sizes["pooling"] = "code" if is_sparse else "grid"
    decoder = _depths(shapes, "dec")
    if decoder:
        sizes["decoder_depths"] = decoder
        sizes["decoder_hidden_sizes"] = [
            size_of(shapes, f"dec.dec{stage}.up.proj.0.weight") for stage in range(len(decoder))
        ]
    if "seg_head.weight" in shapes:
        sizes["num_labels"] = size_of(shapes, "seg_head.weight")
    if "cls_head.0.weight" in shapes:
        sizes["classifier_hidden_sizes"] = [size_of(shapes, f"cls_head.{layer}.weight") for layer in (0, 4)]
        sizes["num_labels"] = size_of(shapes, "cls_head.8.weight")
    return sizes


def _depths(shapes: Mapping[str, tuple[int, ...]], part: str) -> list[int]:
    found: dict[int, set[int]] = {}
    for name in shapes:
        if match := re.match(rf"{part}\.{part}(\d+)\.block(\d+)\.", name):
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    for stage in range(max(found, default=-1) + 1):
        missing = set(range(max(found.get(stage, {0}), default=0) + 1)) - found.get(stage, set())
        if missing:
            raise KeyError(f"{part}.{part}{stage}.block{min(missing)}.norm1.0.weight")
    return [len(found[stage]) for stage in sorted(found)]


def _rotation(frequencies: list[torch.Tensor], sizes: dict[str, Any], told: dict[str, Any], name: str) -> dict:
    """Base and attention heads of a model whose attention turns by coordinates."""
    known = frequencies[0]
    if any(tensor.shape != known.shape for tensor in frequencies):
        raise ValueError(f"{name!r} has attention heads of several sizes, by the lengths of its `inv_freq`.")
    head_size = 6 * len(known)
    heads = [size // head_size for size in sizes["hidden_sizes"]]
    result: dict[str, Any] = {"num_attention_heads": heads}
    if "decoder_hidden_sizes" in sizes:
        result["decoder_num_attention_heads"] = [size // head_size for size in sizes["decoder_hidden_sizes"]]
    base = told.get("rope_base")
    if known.is_meta or len(known) == 1:
        # All bases have the same single frequency.
        return result | {"rope_base": 10 if base is None else base}
    if base is None:
        base = round(float(known[1].double()) ** (-len(known)), 4)
        base = int(base) if base == int(base) else base
    if not all(torch.allclose(rope_frequencies(base, head_size), tensor.float(), rtol=1e-3) for tensor in frequencies):
        raise ValueError(
            f"{name!r} has rotations of other frequencies than those of rope_base={base}: {known.tolist()}."
        )
    return result | {"rope_base": base}


# -- What else is known ---------------------------------------------------------------------------------------------


def _fields_of(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Fields of the configuration from the arguments of a published model."""
    for argument, value in _ONLY.items():
        if arguments.get(argument, value) != value:
            raise ValueError(
                f"{name!r} was built with {argument}={arguments[argument]!r}, which this package does not have (only "
                f"{value!r})."
            )
    fields = {field: arguments[argument] for argument, field in _ARGUMENTS.items() if argument in arguments}
    if isinstance(fields.get("orders"), str):
        fields["orders"] = [fields["orders"]]
    if arguments.get("enc_mode") or arguments.get("cls_mode"):
        # Arguments of a decoder that is not built.
        fields = {field: value for field, value in fields.items() if not field.startswith("decoder_")}
    return {field: list(value) if isinstance(value, tuple) else value for field, value in fields.items()}


def _variant_fields(variant: str | None, sizes: dict[str, Any], name: str) -> dict[str, Any]:
    if variant is None:
        return {}
    if variant not in VARIANTS:
        raise ValueError(f"`variant` must be one of {', '.join(map(repr, VARIANTS))}, got {variant!r}.")
    fields = dict(VARIANTS[variant])
    stem = fields.pop("stem")
    if stem != sizes["stem"]:
        fitting = [known for known, values in VARIANTS.items() if values["stem"] == sizes["stem"]]
        raise ValueError(
            f"`variant`={variant!r} has a {stem} stem, but {name!r} has a {sizes['stem']} one, as the variants "
            f"{fitting} have."
        )
    return fields


def _check_same(field: str, value: Any, wanted: Any, where: str, name: str) -> None:
    if (list(value) if isinstance(value, tuple) else value) != wanted:
        raise ValueError(
            f"The configuration of {name!r} says {field}={value!r}, which contradicts {where}: {wanted!r}. Leave it "
            "out of the configuration, or check that both are of the same model."
        )


def _check_decided(fields: Mapping[str, Any], name: str) -> None:
    """Refuse to guess what changes the function of a model."""
    if fields["stem"] == "sparse" and "legacy_position_features" not in fields:
        raise ValueError(
            f"{name!r} does not say how its position encoding was trained, and the two readings compute different "
            "things: variant='ptv3' (legacy_position_features=True) for the released supervised weights and runs of "
            "Pointcept up to 1.5.1; variant='ptv3-repaired' (legacy_position_features=False) for later runs."
        )
    heads = {"num_attention_heads": "hidden_sizes", "decoder_num_attention_heads": "decoder_hidden_sizes"}
    for field, sizes in heads.items():
        if field not in fields and any(size % _HEAD_SIZE for size in fields.get(sizes, ())):
            raise ValueError(
                f"{name!r} does not say how many attention heads it has, and its widths {fields[sizes]} are not "
                f"multiples of {_HEAD_SIZE}, the size of a head of the published models (18 of Utonia). Give "
                f"`{field}` in the configuration."
            )


def _complete(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All fields, and which of them are assumed."""
    fields, known = dict(fields), set(fields)
    patch_size = _TABLE_PATCH_SIZE if fields["relative_positions"] else _PATCH_SIZE
    fields.setdefault("num_attention_heads", [size // _HEAD_SIZE for size in fields["hidden_sizes"]])
    fields.setdefault("patch_sizes", [patch_size] * len(fields["depths"]))
    fields.setdefault("strides", [2] * (len(fields["depths"]) - 1))
    fields.setdefault("feature_names", _FEATURES.get(fields["in_channels"], []))
    fields.setdefault("grid_size", 0.01 if fields.get("rope_base") is not None else 0.02)
    if "decoder_depths" in fields and fields["decoder_depths"]:
        fields.setdefault(
            "decoder_num_attention_heads", [size // _HEAD_SIZE for size in fields["decoder_hidden_sizes"]]
        )
        fields.setdefault("decoder_patch_sizes", fields["patch_sizes"][:-1])
    assumed = {field: value for field, value in fields.items() if field not in known}
    fields.setdefault("weights_license", LICENSES[fields["stem"]])
    return fields, assumed


def check_rotation(tensors: Mapping[str, torch.Tensor], rope_base: float | None, name: str) -> None:
    """Check that a file has rotations of attention where a model has them, and not where it has none."""
    names = research_names(tensors).values()
    has_encoder = any(re.match(r"enc\.", research_name) for research_name in names)
    turns = any(ROPE.fullmatch(research_name) for research_name in names)
    if has_encoder and turns != (rope_base is not None):
        raise ValueError(
            f"{name!r} {'has' if turns else 'has no'} rotations of attention, but the model has rope_base="
            f"{rope_base}. Build it with the configuration of the file."
        )
