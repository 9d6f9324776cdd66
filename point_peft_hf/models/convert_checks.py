"""What is checked of a published checkpoint, so that nothing converts to a model that computes something else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from .convert_families import recognize_family
from .convert_keys import MODEL_NAMES, encoder_keys, guess_model_type, research_names

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COUNTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_COUNTER = "num_batches_tracked"


def refuse_family(keys: Iterable[str], name: str) -> None:
    """Refuse a file of a model or method that is known, but cannot be converted."""
    names = {research_name: key for key, research_name in research_names(keys).items()}
    found = recognize_family(names)
    if found is not None:
        family, research_name = found
        raise ValueError(f"{name!r} is of {family.name}: it has {names[research_name]!r}. {family.advice}")


def check_guess(keys: Iterable[str], model_type: str, name: str) -> None:
    """Check that a file is not of another model type."""
    guess = guess_model_type(keys)
    if guess not in (None, model_type):
        raise ValueError(
            f"{name!r} is a checkpoint of {MODEL_NAMES[guess]}, by the names of its tensors, not of "
            f"{MODEL_NAMES[model_type]}. Pass model_type={guess!r}."
        )


def check_names(tensors: Mapping[str, torch.Tensor], model_type: str, known: Collection[str], name: str) -> None:
    """Check that a file is of a model type, and that all it has inside of the encoder is known."""
    name = name or "the checkpoint"
    refuse_family(tensors, name)
    check_guess(tensors, model_type, name)
    inside, unclear = encoder_keys(tensors) if known else (set(), set())
    if unclear:
        raise ValueError(
            f"{name!r} has {min(unclear)!r} outside of the prefix of its encoder, but under the name of a part of an "
            "encoder, so it is unclear whether it belongs to it. Rename it or remove it."
        )
    if unknown := sorted(inside - set(known)):
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise ValueError(
            f"{name!r} has {unknown[0]!r}{more} inside of the encoder. A {model_type} has no such tensor, and would "
            "compute something else without it. The file is of a model or a method that this package does not know."
        )


def check_values(tensors: Mapping[str, torch.Tensor], sources: Mapping[str, tuple[str, ...]], name: str) -> None:
    """Check that tensors can be weights: of a type that is computed in, dense, and without NaN."""
    for target, tensor in tensors.items():
        problem = _problem_of(target, tensor)
        if problem:
            raise ValueError(
                f"{sources[target][0]!r} of {name or 'the checkpoint'!r} {problem}. The file is damaged, or was "
                "written by a training that diverged or by a tool for compression: take another file."
            )


def _problem_of(target: str, tensor: torch.Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"is not a dense tensor (it is of {tensor.layout if not tensor.is_quantized else tensor.dtype})"
    if target.endswith(_COUNTER) and tensor.dtype in _COUNTS:
        return ""
    if tensor.dtype not in _FLOATS:
        return f"is of {tensor.dtype}, not of a type that weights are computed in"
    if tensor.is_meta or tensor.numel() == 0:
        return ""
    # One pass over a file that may be large, and NaN comes through.
    low, high = tensor.aminmax()
    if not (low.isfinite() and high.isfinite()):
        return "has values that are not finite (NaN or infinity)"
    if target.endswith(".running_var") and low < 0:
        return "has negative values, but is a variance"
    return ""


def shapes_of(model_class: type, fields: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Shapes of the tensors of a model, by name as in a model with a head, without creating them."""
    try:
        config = model_class.config_class(**fields)
    except (TypeError, StrictDataclassError) as error:
        raise ValueError(f"The configuration of the {model_class.config_class.model_type} is wrong: {error}") from None
    with torch.device("meta"):
        model = model_class(config)
    # Inside of the encoder's own class, names have no prefix.
    prefix = f"{model.base_model_prefix}." if model.base_model is model else ""
    return {prefix + key: tensor.shape for key, tensor in model.state_dict().items()}


def check_shapes(converted: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size], name: str) -> None:
    """Check that tensors, by name here, have the shapes that a model expects."""
    for key, tensor in converted.items():
        if tensor.shape != expected[key]:
            raise ValueError(
                f"{key!r} has shape {tuple(tensor.shape)} in {name or 'the checkpoint'!r}, but {tuple(expected[key])} "
                "in a model of the sizes that its other tensors and the configuration give. The file mixes models, or "
                "a field of the configuration is wrong."
            )


def check_encoder(
    converted: Iterable[str], expected: Iterable[str], encoder_class: type, model_class: type, name: str
) -> None:
    """Check that a file has the whole encoder of a class, the rest of the class, and nothing more in the encoder.

    A class token may be missing where pre-training does not have one, but not with a head that was trained with it.
    """
    converted, expected, name = set(converted), set(expected), name or "The checkpoint"
    base = f"{encoder_class.base_model_prefix}."
    too_many = sorted(key for key in converted - expected if key.startswith(base))
    if too_many:
        raise ValueError(
            f"{name!r} has {too_many[0]!r}, which a {model_class.__name__} of its sizes does not have "
            f"({len(too_many)} tensors). The file mixes models, or a field of the configuration is wrong."
        )
    missing = {key for key in expected - converted if not key.endswith(_COUNTER)}
    is_pretrained = getattr(encoder_class, "is_pretrained_with_class_token", False)
    if not is_pretrained and not any(key.startswith("classifier.") for key in expected):
        for module in encoder_class.task_module_names:
            parts = {key for key in expected if key.startswith(f"{base}{module}.")}
            missing -= parts if parts <= missing else set()
    if missing:
        raise ValueError(
            f"{name!r} has only a part of a {model_class.__name__}: {len(missing)} tensors are missing, for example "
            f"{', '.join(sorted(missing)[:3])}. Check that the file is complete, and `model_type`."
        )


def size_of(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int = 0) -> int:
    """The size of a tensor along an axis, by research name; `KeyError` if there is no such tensor."""
    shape = shapes[name]
    if axis >= len(shape) or shape[axis] == 0:
        raise ValueError(
            f"{name!r} has shape {tuple(shape)}, which no such tensor has. The file is damaged or of another model."
        )
    return shape[axis]
