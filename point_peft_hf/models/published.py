"""Loading folders and repositories that hold published weights under other names, without a configuration."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.utils import cached_file

from .convert_checks import refuse_family
from .convert_keys import MODEL_NAMES, guess_model_type
from .convert_ptv3 import UNTOLD, read_arguments
from .convert_tensors import WEIGHTS_NAME, convert_tensors, read_checkpoint

# What `from_pretrained` passes on to the download.
_HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def find_published_weights(name: str | os.PathLike | None, kwargs: dict[str, Any]) -> Path | None:
    """The weights of a folder or repository, if they are in a published layout.

    Returns:
        The file, downloaded if need be; `None` for everything that transformers loads itself, or reports as missing.
    """
    if name is None or kwargs.get("state_dict") is not None:
        return None
    if os.path.isfile(name):
        return Path(name)
    if "config" not in kwargs or kwargs["config"] is None:
        config_file = _cached_file(name, "config.json", kwargs)
        if config_file is not None and _is_of_transformers(config_file):
            return None
    weights = _cached_file(name, WEIGHTS_NAME, kwargs)
    if weights is None or published_model_type(weights) is None:
        return None
    return weights


def published_model_type(weights: Path) -> str | None:
    """The model type of a file in a published layout; `None` if it is in no published layout."""
    if weights.suffix == ".safetensors":
        with safe_open(weights, framework="pt") as file:
            keys = list(file.keys())
    else:
        keys = list(read_checkpoint(weights))
    model_type = guess_model_type(keys)
    if model_type is None:
        refuse_family(keys, str(weights))
    return model_type


def _cached_file(name: str | os.PathLike, filename: str, kwargs: dict[str, Any]) -> Path | None:
    path = cached_file(
        name,
        filename,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **{key: kwargs[key] for key in _HUB_KEYS if kwargs.get(key) is not None},
    )
    return None if path is None else Path(path)


def _is_of_transformers(config_file: Path) -> bool:
    try:
        fields = json.loads(config_file.read_text())
    except ValueError:
        return True
    return isinstance(fields, dict) and fields.get("model_type") in CONFIG_MAPPING


def load_published_weights(
    model_class: type, weights: Path, name: str, kwargs: dict[str, Any]
) -> tuple[PreTrainedConfig, dict[str, torch.Tensor], dict[str, Any]]:
    """Read and convert published weights for a class.

    Returns:
        The configuration, the tensors in the names of this package, and the keyword arguments that are left.
    """
    from .convert import choose_class  # It imports the models, and they this module.

    config_class = model_class.config_class
    model_type = published_model_type(weights)
    if model_type is None:
        raise ValueError(f"{name!r} is in no layout that is known: it has tensors, but none of an encoder.")
    if model_type != config_class.model_type:
        raise ValueError(
            f"{name!r} holds a {model_type} ({MODEL_NAMES[model_type]}), but {model_class.__name__} is a "
            f"{config_class.model_type}. Load it with a class of its own type, or with an Auto class such as "
            "AutoModelForPointCloudClassification."
        )
    options: dict[str, Any] = {}
    if model_type == "ptv3":
        options["arguments"] = read_arguments(weights)
        options["config_fields"] = {field: kwargs[field] for field in UNTOLD if field in kwargs}
    converted = convert_tensors(read_checkpoint(weights), model_type, name=name, **options)
    choose_class(model_type, converted, name)
    kwargs = {key: value for key, value in kwargs.items() if key not in _HUB_KEYS}
    config = kwargs.pop("config", None)
    if not isinstance(config, PreTrainedConfig):
        known = {*config_class.__dataclass_fields__, "num_labels"} - {"dtype"}
        given = {key: kwargs.pop(key) for key in list(kwargs) if key in known}
        fields = converted.config_fields
        if "id2label" in given:
            fields.pop("num_labels", None)
        config = config_class(**{**fields, **given})
    return config, converted.tensors, kwargs
