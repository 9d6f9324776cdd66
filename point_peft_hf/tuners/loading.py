"""Whether the weights in an adapter's file are those that the adapter has, no more and no less."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from peft.tuners.tuners_utils import _filter_state_dict_by_key_prefixes, _get_tuner_state_dict_key_prefixes
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

if TYPE_CHECKING:
    from .config import PointTunerConfig

# PEFT writes keys as seen from a `PeftModel`, whether there is one or not.
KEY_PREFIX = "base_model.model."


def check_saved_modules(model: nn.Module, config: PointTunerConfig) -> None:
    """Check that the file of an adapter has all of the modules that it says it brings, before anything is attached.

    Args:
        model: The backbone, not yet attached to.
        config: The configuration; nothing is checked if it does not come from a file.

    Raises:
        ValueError: If something is missing, with the names of key and file.
    """
    files = config._files
    if files is None or not files.tensors:
        return
    wanted = tuple(config.modules_to_save or ())
    keys = []
    for name, module in model.named_modules():
        if wanted and name.endswith(wanted) and any(name == end or name.endswith(f".{end}") for end in wanted):
            original = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module
            keys += [f"{KEY_PREFIX}{name}.{key}" for key in original.state_dict()]
    missing = [key for key in keys if key not in files.tensors]
    if missing:
        raise ValueError(_message(str(files.weights), missing, [], files.problem))


def check_loaded(
    model: nn.Module, config: PointTunerConfig, adapter_name: str, state_dict: Mapping[str, torch.Tensor]
) -> None:
    """Check that weights are those of an adapter, and undamaged if they come from a file.

    Args:
        model: The model that carries the adapter.
        config: Its configuration.
        adapter_name: Its name.
        state_dict: The weights, in the names that they have in the model.

    Raises:
        ValueError: If not, with the names of keys and file.
    """
    files, config._files = config._files, None
    expected = _adapter_tensors(model, adapter_name)
    got = {key if key in expected else key.removeprefix(KEY_PREFIX): tensor for key, tensor in state_dict.items()}
    missing, extra = _difference(expected, got)
    where = "The weights of the adapter" if files is None else str(files.weights)
    if missing or extra:
        raise ValueError(_message(where, missing, extra, files and files.problem))
    for key, tensor in got.items():
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise ValueError(f"{where}: {key!r} must be of type {expected[key].dtype}, got {tensor.dtype}.")
    if files is not None and files.problem is not None:
        shapes = [
            f"{key!r} has shape {tuple(tensor.shape)} instead of {tuple(expected[key].shape)}"
            for key, tensor in got.items()
            if tensor.shape != expected[key].shape
        ]
        raise ValueError(" ".join([files.problem, *shapes[:3]]))


def _adapter_tensors(model: nn.Module, adapter_name: str) -> dict[str, torch.Tensor]:
    """All tensors of an adapter in a model, those of the modules that it brings included."""
    state_dict = model.state_dict()
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name=adapter_name)
    tensors = dict(_filter_state_dict_by_key_prefixes(state_dict, prefixes))
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            for key in module.adapter_state_dict_load_map(adapter_name).values():
                tensors[f"{name}.{key}"] = state_dict[f"{name}.{key}"]
    return tensors


def _difference(expected: Collection[str], got: Collection[str]) -> tuple[list[str], list[str]]:
    """What is missing, and what is too much."""
    return sorted(set(expected) - set(got)), sorted(set(got) - set(expected))


def _message(where: str, missing: list[str], extra: list[str], problem: str | None) -> str:
    parts = []
    if missing:
        parts.append(f"lacks {_listed(missing)}")
    if extra:
        parts.append(f"has {_listed(extra)}, which this adapter has no place for")
    way_out = problem or "Load the backbone that the adapter was made for, or download the adapter again."
    return f"{where} {' and '.join(parts)}. {way_out}"


def _listed(keys: list[str]) -> str:
    shown = ", ".join(map(repr, keys[:3]))
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"
