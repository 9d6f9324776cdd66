"""Whether the weights in an adapter's file are those that the adapter has, no more and no less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import _filter_state_dict_by_key_prefixes, _get_tuner_state_dict_key_prefixes
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file
from torch import nn

from .files import AdapterFiles

# PEFT writes keys as seen from a `PeftModel`, whether there is one or not.
KEY_PREFIX = "base_model.model."
_WAY_OUT = "Load the backbone that the adapter was made for, or download the adapter again."


def check_file(model: nn.Module, config: Any, adapter_name: str) -> None:
    """Check that the file of an adapter has exactly what the adapter in the model has, before its weights are read.

    Nothing is checked if the configuration does not come from a folder with weights.
    """
    files = config._files
    if not config.comes_with_weights:
        return
    remove_name = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]._remove_adapter_name_from_key
    expected = {
        KEY_PREFIX + remove_name(key, adapter_name) if saved_key is None else KEY_PREFIX + saved_key: tensor
        for key, saved_key, tensor in _adapter_tensors(model, adapter_name)
    }
    _compare(str(files.weights), expected, files.tensors, files.problem)


def check_loaded(model: nn.Module, config: Any, adapter_name: str, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Check that weights are those of an adapter, and undamaged if they come from a file.

    The `state_dict` has the weights in the names that they have in the model.
    """
    files, config._files = config._files, None
    expected = {key: tensor for key, _, tensor in _adapter_tensors(model, adapter_name)}
    got = {key if key in expected else key.removeprefix(KEY_PREFIX): tensor for key, tensor in state_dict.items()}
    where = "The weights of the adapter" if files is None else str(files.weights)
    _compare(where, expected, got, files and files.problem)
    for key, tensor in got.items():
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise ValueError(f"{where}: {key!r} must be of type {expected[key].dtype}, got {tensor.dtype}.")


def check_complete(model: nn.Module, adapter_name: str, files: AdapterFiles) -> None:
    """Check that a file has exactly the weights of an adapter of PEFT's own types; PEFT itself only warns."""
    tensors = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    expected = {KEY_PREFIX + key.removeprefix(KEY_PREFIX): tensor for key, tensor in tensors.items()}
    got = {KEY_PREFIX + key.removeprefix(KEY_PREFIX): info for key, info in files.tensors.items()}
    _compare(str(files.weights), expected, got, files.problem)


def load_weights(model: nn.Module, adapter_name: str, files: AdapterFiles) -> None:
    """Load the weights of an adapter that is attached to a backbone itself, not to a `PeftModel`."""
    config = model.peft_config[adapter_name]
    if hasattr(config, "comes_with_weights"):
        config._files = files
        check_file(model, config, adapter_name)
    else:
        check_complete(model, adapter_name, files)
    tensors = {key.removeprefix(KEY_PREFIX): tensor for key, tensor in load_file(files.weights).items()}
    set_peft_model_state_dict(model, tensors, adapter_name=adapter_name)


def _adapter_tensors(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, str | None, torch.Tensor]]:
    """All tensors of an adapter: key in the model; key in a file, for modules that the adapter brings; tensor."""
    state_dict = model.state_dict()
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name=adapter_name)
    for key, tensor in _filter_state_dict_by_key_prefixes(state_dict, prefixes).items():
        yield key, None, tensor
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            for saved, key in module.adapter_state_dict_load_map(adapter_name).items():
                yield f"{name}.{key}", f"{name}.{saved}", state_dict[f"{name}.{key}"]


def _compare(where: str, expected: Mapping[str, Any], got: Mapping[str, Any], problem: str | None) -> None:
    missing, extra = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    if missing or extra:
        parts = [f"lacks {_listed(missing)}"] if missing else []
        if extra:
            parts.append(f"has {_listed(extra)}, which this adapter does not have")
        raise ValueError(f"{where} {' and '.join(parts)}. {problem or _WAY_OUT}")
    shapes = [
        f"{key!r} has shape {tuple(tensor.shape)} instead of {tuple(expected[key].shape)}"
        for key, tensor in got.items()
        if tuple(tensor.shape) != tuple(expected[key].shape)
    ]
    if problem is not None:
        raise ValueError(" ".join([problem, *shapes[:3]]))
    if shapes:
        way_out = _WAY_OUT
        if any("_bank." in shape for shape in shapes):
            way_out = (
                "A bank has the size that it was built with: call build_point_prior_bank(model, dataloader) before "
                "the weights are loaded, or load the adapter with PeftModel.from_pretrained."
            )
        raise ValueError(f"{where}: {'; '.join(shapes[:3])}. {way_out}")


def _listed(keys: list[str]) -> str:
    shown = ", ".join(map(repr, keys[:3]))
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"
