"""Several adapters on one resident backbone, each ready to predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from .part_predictor import PartPredictor
from .predictor import Predictor, load_predictor


def load_resident(
    adapters: Sequence[str], model: str | None = None, device: str = "cpu"
) -> dict[str, Predictor | PartPredictor]:
    """Load several adapters; those of one backbone share its weights, whatever their types, tasks and classes are.

    PEFT's own `load_adapter` and `set_adapter` also switch on one backbone, but only among adapters of one type with
    the same classes.

    Args:
        adapters: Folders or Hub repositories.
        model: Backbone of all: name of a shipped one, a folder or a Hub repository; default: the one each adapter
            names.
        device: Where to predict.

    Returns:
        The predictors by name: that of the folder or repository, as much of its path as makes it unique.

    Raises:
        ValueError: If there is none, one is given twice, or one cannot be loaded.
    """
    names = short_names(adapters)
    predictors = {}
    for name, adapter in zip(names, adapters, strict=True):
        predictors[name] = load_predictor(adapter, model, device)
        share_weights([predictor.model for predictor in predictors.values()])
    return predictors


def share_weights(models: Sequence[nn.Module]) -> int:
    """Let models share the memory of equal frozen weights, by name in the backbone.

    Args:
        models: Models on one device, with or without adapters.

    Returns:
        Number of bytes that are no longer needed.
    """
    resident: dict[str, list[nn.Parameter]] = {}
    saved = 0
    for model in models:
        for name, module in model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                known = resident.setdefault(_backbone_name(f"{name}.{key}"), [])
                kept = next((other for other in known if _are_equal(other, parameter)), None)
                if kept is None:
                    known.append(parameter)
                elif kept is not parameter:
                    setattr(module, key, kept)
                    saved += parameter.numel() * parameter.element_size()
    return saved


def short_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of paths that differ from each other."""
    parts = [Path(path).parts for path in paths]
    if not parts or len(set(parts)) < len(parts):
        raise ValueError(f"Give one or more adapters, each once; got {list(paths)}.")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(map(str, paths))


def _backbone_name(name: str) -> str:
    """Name of a parameter without what adapters put around modules."""
    wrappers = {"base_model", "model", "base_layer", "original_module"}
    return ".".join(part for part in name.split(".") if part not in wrappers)


def _are_equal(first: nn.Parameter, second: nn.Parameter) -> bool:
    same_kind = first.shape == second.shape and first.dtype == second.dtype and first.device == second.device
    frozen = not (first.requires_grad or second.requires_grad)
    return same_kind and frozen and torch.equal(first, second)
