"""Adapters that transformers loads by itself (`from_pretrained`, `load_adapter`): only if their files are sound.

What goes by way of PEFT is checked where the configuration is loaded; transformers goes another way, and only reports
what is missing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ..adapter_files import AdapterFiles, check_files, check_unchanged, find_adapter

_KEY_PREFIX = "base_model.model."
_HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def load_adapter_checked(model: nn.Module, load_adapter: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Check the files of an adapter, load it with transformers' own method, and check that nothing was missing.

    Args:
        model: The backbone.
        load_adapter: The method.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    Returns:
        What the method returns.

    Raises:
        ValueError: If the adapter is not sound or does not fit, with the names of key and file; it is not attached
            then.
    """
    given = inspect.signature(load_adapter).bind(*args, **kwargs).arguments
    name, adapter_name = given.get("peft_model_id"), given.get("adapter_name") or "default"
    if name is None or given.get("adapter_state_dict") is not None:
        return load_adapter(*args, **kwargs)
    files = check_files(find_adapter(name, **_hub_arguments(given)))
    if files.config is not None:
        check_unchanged(files)
        if files.problem is not None:
            raise ValueError(files.problem)
        _check_leaves_backbone(model, files)
    known = set(getattr(model, "peft_config", ()))
    try:
        loaded = load_adapter(*args, **kwargs)
        if files.weights is not None:
            _check_complete(model, files, adapter_name)
    except Exception as error:
        if adapter_name in set(getattr(model, "peft_config", ())) - known:
            model.delete_adapter(adapter_name)
        if isinstance(error, RuntimeError | KeyError | TypeError) and files.weights is not None:
            raise ValueError(f"The adapter in {files.weights} does not fit the model. {error}") from error
        raise
    return loaded


def _hub_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Where on the Hub an adapter is, out of the several ways in which transformers may be told."""
    load_config = given.get("load_config")
    sources = (
        getattr(load_config, "download_kwargs", None) or {},
        given.get("kwargs", {}).get("download_kwargs") or {},
        given.get("kwargs", {}),
        {key: given[key] for key in _HUB_KEYS if key in given},
        given.get("adapter_kwargs") or {},
    )
    merged = {key: value for source in sources for key, value in source.items() if key in _HUB_KEYS}
    return {key: value for key, value in merged.items() if value is not None}


def _check_leaves_backbone(model: nn.Module, files: AdapterFiles) -> None:
    """Check that an adapter brings no weights of the backbone, except those of the modules that it says it brings."""
    if files.fields.get("bias", "none") != "none":
        return
    modules = files.fields.get("modules_to_save") or ()
    own = model.state_dict()
    for key in files.tensors:
        bare = key.removeprefix(_KEY_PREFIX)
        if bare in own and not any(f".{name}." in f".{bare}" for name in modules):
            raise ValueError(
                f"{files.weights} has {key!r}, a weight of the backbone, which an adapter must not replace."
            )


def _check_complete(model: nn.Module, files: AdapterFiles, adapter_name: str) -> None:
    expected = set(model.get_adapter_state_dict(adapter_name))
    got = {key.removeprefix(_KEY_PREFIX) for key in files.tensors}
    for verb, keys in (("lacks", expected - got), ("has no place for", got - expected)):
        if keys:
            subject = str(files.weights) if verb == "lacks" else f"The model of {files.weights}"
            raise ValueError(
                f"{subject} {verb} {sorted(keys)[:3]}, {len(keys)} in all. Load the backbone that the adapter was "
                "made for, or download the adapter again."
            )
