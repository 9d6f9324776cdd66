"""What an adapter remembers of its backbone: its kind, sizes and classes, and a fingerprint of its weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..attaching import backbone_tensors, pretrained_parts, unsaved_task_tensors
from ..pretrained import backbone_folder
from .files import refuse_adapter

# Fields of a backbone that must be those an adapter was made with: what follows from them is in no weight.
BACKBONE_FIELDS = (
    *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_groups", "group_size"),
    *("group_sizes", "patch_sizes", "strides", "orders", "pooling", "rope_base", "legacy_position_features"),
)
# Modules that classify objects or points: adapters that bring one remember the names of the classes.
HEADS = {
    "classifier": "AutoModelForPointCloudClassification",
    "segmentation_head": "AutoModelForPointCloudSegmentation",
    "semantic_head": "AutoModelForPointCloudSemanticSegmentation",
}
# Fields that a segmentation head is built from.
SEGMENTATION_FIELDS = (
    *("num_categories", "category_names", "category_parts", "segmentation_token_size"),
    *("segmentation_propagation_sizes", "segmentation_hidden_sizes", "segmentation_layers"),
)
# Fields that a decoder of scenes is built from.
DECODER_FIELDS = ("decoder_depths", "decoder_hidden_sizes", "decoder_num_attention_heads", "decoder_patch_sizes")
# Fields of their kind that a backbone may be loaded with.
_LOADING_FIELDS = ("num_labels", "num_groups", "group_size", "group_sizes")
# What is not compared as a value that has to be the same.
_COMPARED_OTHERWISE = (
    *("architecture", "encoder", "head", "id2label", "revision", "unsaved_modules", "weights", "weights_license"),
)
# From the most exact to the least. Only a model whose weights are all exact enough has a digest of a precision.
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_EXACT = (torch.float64, torch.float32)
_DIGEST_LENGTH = 32


def open_backbone(model_class: type, name: str, **options: Any) -> nn.Module:
    """Load a backbone by name.

    Args:
        model_class: A class with `from_pretrained`.
        name: Name of a shipped backbone, a folder, or a Hub repository.
        **options: Passed to `from_pretrained`.

    Raises:
        FileNotFoundError: If `name` is a folder that is not there or holds an adapter.
        OSError: If the model cannot be loaded.
    """
    folder = backbone_folder(name)
    refuse_adapter(folder)
    try:
        return model_class.from_pretrained(folder, **options)
    except OSError as error:
        if os.path.isdir(folder):
            raise
        raise OSError(
            f"The backbone {name!r} is neither a folder here nor a repository that could be loaded: {error}"
        ) from error


@torch.no_grad()
def fingerprint(model: nn.Module, left_out: Iterable[str] = ()) -> dict[str, str]:
    """Digests of the frozen weights of a backbone, by precision.

    All bytes of all weights and statistics count, with their names and shapes. There is one digest for each precision
    that the weights may be cast to, because a backbone that is loaded in bfloat16 is still the backbone that an
    adapter was trained on in float32; there is none for weights that are quantised or not there ("meta"). What belongs
    to a task (head, class token) and what adapters added is left out; of a module that an adapter brings a copy of,
    the original counts. Costs about a second for 100 million weights.

    Args:
        model: The backbone, with or without adapters.
        left_out: Names of the modules that belong to the task, where the model does not declare them itself.
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
    """Digests by precision, by module, of the modules of the task that no adapter brings.

    `modules_to_save` come with the adapter itself, those `brought_by_others` with another adapter.
    """
    digests = {
        part: _digests({name.partition(f"{part}.")[2]: tensor for name, tensor in tensors.items()})
        for part, tensors in unsaved_task_tensors(model, modules_to_save, brought_by_others).items()
    }
    return {part: digest for part, digest in digests.items() if digest}


def _digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    tensors = dict(sorted(tensors.items()))
    if not tensors or True in [tensor.is_meta for tensor in tensors.values()]:
        return {}
    dtypes = {tensor.dtype for tensor in tensors.values()}
    return {name: _digest(tensors, dtype) for name, dtype in PRECISIONS.items() if dtypes <= {*_EXACT, dtype}}


def common_precision(expected: Mapping[str, str], got: Mapping[str, str]) -> str | None:
    """The most exact precision that both of two fingerprints have a digest of; `None` if there is none."""
    return next((name for name in PRECISIONS if name in expected and name in got), None)


def _digest(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        # By way of float32, so that a cast from float64 is not rounded otherwise than one from float32.
        values = tensor.detach().to("cpu", torch.float32).to(dtype).contiguous()
        digest.update(values.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:_DIGEST_LENGTH]


def describe_backbone(
    model: nn.Module, modules_to_save: Collection[str] = (), brought_by_others: Collection[str] = ()
) -> dict[str, Any]:
    """What an adapter remembers of its backbone: class, type and sizes, fingerprints of its weights, and the classes.

    Task modules that neither the adapter (`modules_to_save`) nor another one brings have a fingerprint each. If a head
    is among the former, the classes matter.
    """
    config = getattr(model, "config", None)
    description = {name: getattr(config, name, None) for name in BACKBONE_FIELDS}
    description["architecture"] = type(getattr(model, "_orig_mod", model)).__name__
    if encoder := getattr(model, "base_model_prefix", None):
        description["encoder"] = encoder if hasattr(model, encoder) else ""
    brings_head = any(name in modules_to_save for name in HEADS)
    if brings_head:
        description["head"] = next((name for name in HEADS if hasattr(model, name)), None)
    description["weights_license"] = getattr(config, "weights_license", None)
    # Where it was loaded from the Hub: which commit.
    description["revision"] = getattr(config, "_commit_hash", None)
    description["weights"] = fingerprint(model, modules_to_save) or None
    description["unsaved_modules"] = unsaved_fingerprints(model, modules_to_save, brought_by_others) or None
    if brings_head and hasattr(config, "id2label"):
        description["num_labels"] = config.num_labels
        description["id2label"] = {str(index): name for index, name in config.id2label.items()}
    if "segmentation_head" in modules_to_save:
        description |= {name: getattr(config, name, None) for name in SEGMENTATION_FIELDS}
    if "semantic_head" in modules_to_save:
        description |= {name: getattr(config, name, None) for name in DECODER_FIELDS}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in description.items()
        if value is not None
    }


def check_backbone(
    expected: dict[str, Any], description: dict[str, Any], name: str | None = None, revision: str | None = None
) -> None:
    """Check that a backbone is the one, called `name` in messages, that an adapter was made for.

    `expected` is what the adapter remembers; `description` what the backbone is, from [`describe_backbone`]. If it has
    the right weights, all that is known of their fingerprint goes in there.
    """
    base = f" ({name})" if name else ""
    if description.get("model_type") == expected.get("model_type"):
        _check_architecture(expected, description, base)
    for field_name, value in expected.items():
        got = description.get(field_name)
        if field_name in _COMPARED_OTHERWISE or got is None or value is None or got == value:
            continue
        hint = "Load the backbone that the adapter was made for"
        if field_name in (*_LOADING_FIELDS, *SEGMENTATION_FIELDS, *DECODER_FIELDS):
            hint = f"Load the backbone with `{field_name}={value}`"
        raise ValueError(
            f"The adapter was made for a backbone{base} with {field_name}={value!r}, but this one has "
            f"{field_name}={got!r}. {hint}."
        )
    weights, own_weights = expected.get("weights") or {}, description.get("weights") or {}
    precision = common_precision(weights, own_weights)
    if precision is not None and weights[precision] != own_weights[precision]:
        revision = expected.get("revision") or revision
        raise ValueError(
            f"The adapter was made for a backbone{base} with other weights: their {precision} fingerprint is "
            f"{weights[precision]}{f' (revision {revision})' if revision else ''}, but that of this one is "
            f"{own_weights[precision]}. Load the backbone that the adapter was made for, and make sure that no "
            "warning says that some of its weights were not found."
        )
    _check_unsaved_modules(expected, description, base)
    if precision is not None:
        # A backbone that is loaded in half precision does not show all digits of the weights.
        description["weights"] = {**own_weights, **weights}


def _check_architecture(expected: dict[str, Any], description: dict[str, Any], base: str) -> None:
    """Check that the modules have the names that the adapter's file has, and that there is a head for its own."""
    head, encoder, own_encoder = expected.get("head"), expected.get("encoder"), description.get("encoder")
    needed, own = expected.get("architecture"), description.get("architecture")
    load = f"Load the backbone with {HEADS.get(head, needed or 'the class that the adapter was made for')}"
    if encoder is not None and own_encoder is not None and encoder != own_encoder:
        features = f"; for features, call its encoder: `model.get_base_model().{encoder}(points)`" if encoder else ""
        raise ValueError(
            f"The adapter was made for a {needed}{base}, but this is a {own}, whose modules have other names. "
            f"{load}{features}."
        )
    if head is not None and description.get("head") != head:
        found = f"has head={description['head']!r}" if "head" in description else f"is a {own} without a head"
        raise ValueError(
            f"The adapter was made for a backbone{base} with head={head!r}, but this one {found}. {load}."
        )


def _check_unsaved_modules(expected: dict[str, Any], description: dict[str, Any], base: str) -> None:
    """Check the head and the like where the adapter brings none of its own."""
    own, others = description.get("unsaved_modules") or {}, []
    for part, digests in (expected.get("unsaved_modules") or {}).items():
        precision = common_precision(digests, own.get(part, {}))
        if precision is not None and digests[precision] != own[part][precision]:
            others.append(part)
    if others:
        raise ValueError(
            f"The adapter was made for a backbone{base} in which {others} have other weights, and it brings none of "
            "its own, as they were not in its `modules_to_save`. Load the backbone from the folder in which it was "
            f"saved with these weights, or train the adapter again with `modules_to_save={others}`."
        )
