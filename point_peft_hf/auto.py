"""From the name of an adapter to a model that predicts: backbone and adapter in one line."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

from peft import AutoPeftModel, PeftConfig, PeftModel
from peft.auto import check_import_allowlist
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers import PreTrainedModel

from . import models
from .io.backbone import DECODER_FIELDS, HEADS, SEGMENTATION_FIELDS, check_backbone, describe_backbone, open_backbone
from .io.files import (
    BACKBONE_NAME,
    CONFIG_NAME,
    WEIGHTS_NAME,
    AdapterFiles,
    check_files,
    check_unchanged,
    find_adapter,
    find_file,
    read_json,
)
from .io.weights import check_complete
from .pretrained import backbone_folder

IMPORT_ALLOWLIST = ("point_peft_hf",)
# What an adapter knows of its backbone that the backbone's own files may say otherwise.
_OVERRIDES = ("num_groups", "group_size", "group_sizes", *SEGMENTATION_FIELDS, *DECODER_FIELDS)
_ADAPTER_OPTIONS = {
    name
    for method in (PeftModel.from_pretrained, PeftModel.load_adapter)
    for name, parameter in inspect.signature(method).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
} | {"ignore_mismatched_sizes"}
# Where the modules of a backbone go is where PEFT puts them again, with those of the adapter.
_OPTIONS_OF_BOTH = {"device_map", "max_memory", "offload_folder"}


class AutoPointPeftModel(AutoPeftModel):
    """An adapter with its backbone: `AutoPointPeftModel.from_pretrained("owner/name")`.

    PEFT's `AutoPeftModel` for point clouds: it knows the backbones that ship with the package, gives them a head for
    the classes of the adapter, and only takes an adapter whose files are sound and whose backbone has the weights
    that it was trained on. It also loads LoRA and other adapters of PEFT's own types that
    [`~point_peft_hf.io.save_adapter`] saved.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        adapter_name: str = "default",
        is_trainable: bool = False,
        revision: str | None = None,
        *,
        subfolder: str | None = None,
        backbone: str | os.PathLike | nn.Module | None = None,
        backbone_kwargs: Mapping[str, Any] | None = None,
        import_allowlist: list[str] | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **kwargs: Any,
    ) -> PeftModel:
        """Load an adapter and the backbone that it was made for.

        Args:
            pretrained_model_name_or_path: Folder, or repository of the Hub.
            adapter_name: Its name in the model.
            is_trainable: Whether it is going to be trained on.
            revision: Branch, tag or commit of the adapter's repository.
            subfolder: Where in the repository, if it holds several adapters.
            backbone: Another place to take the backbone from, or the backbone itself; it must have the same weights.
            backbone_kwargs: Passed to the backbone's `from_pretrained` only, such as `{"revision": "v2"}`.
            import_allowlist: Packages that the class of the backbone may come from, besides this one.
            token: Token of the Hub, for private repositories.
            cache_dir: Where downloads are kept.
            local_files_only: Whether to use what is in the cache only.
            force_download: Whether to download again what is in the cache.
            **kwargs: Options of `PeftModel.from_pretrained` and `PeftModel.load_adapter` go there, such as
                `low_cpu_mem_usage`; all others go to the backbone's `from_pretrained`, such as `dtype`, `device_map`,
                `quantization_config` and `attn_implementation`.

        Returns:
            The model, in eval mode unless it is going to be trained.

        Raises:
            ValueError: If something is missing or damaged, or if adapter and backbone do not fit, with the name of the
                file.
        """
        hub = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only or None}
        hub |= {"force_download": force_download or None}
        hub = {key: value for key, value in hub.items() if value is not None}
        options = _backbone_options(kwargs, backbone_kwargs, backbone)
        place = hub | {key: value for key, value in (("revision", revision), ("subfolder", subfolder)) if value}
        files, config_class = _read(pretrained_model_name_or_path, place)
        if files.commit is not None:
            place["revision"] = files.commit
        expected = _expected_backbone(files)
        if not isinstance(backbone, nn.Module):
            allowed = [*IMPORT_ALLOWLIST, *(import_allowlist or ())]
            backbone = _load_backbone(files, expected, backbone, allowed, hub | options)
        is_ours = _is_ours(config_class)
        if not is_ours:
            description = describe_backbone(backbone, files.fields.get("modules_to_save") or ())
            check_backbone(expected, description, files.fields.get("base_model_name_or_path"))
        try:
            model = cls._target_peft_class.from_pretrained(
                backbone, str(pretrained_model_name_or_path), adapter_name, is_trainable, **place, **kwargs
            )
        except (KeyError, RuntimeError, TypeError) as error:
            # PEFT's own words for weights that do not fit do not say which file they come from.
            raise ValueError(
                f"The adapter in {files.weights} cannot be used. {type(error).__name__}: {error}"
            ) from error
        if not is_ours:
            check_complete(model, adapter_name, files)
        return model


def _backbone_options(
    kwargs: dict[str, Any], backbone_kwargs: Mapping[str, Any] | None, backbone: Any
) -> dict[str, Any]:
    """Take out of the options those for the backbone; both sides get those that say where modules go."""
    config = kwargs.get("config")
    for_peft = _ADAPTER_OPTIONS if config is None or isinstance(config, PeftConfig) else _ADAPTER_OPTIONS - {"config"}
    options = {name: kwargs[name] for name in kwargs if name not in for_peft or name in _OPTIONS_OF_BOTH}
    for name in options.keys() - _OPTIONS_OF_BOTH:
        del kwargs[name]
    if twice := sorted(options.keys() & (backbone_kwargs or {}).keys()):
        raise ValueError(f"{twice} are in `backbone_kwargs` as well. Pass each option once.")
    options |= backbone_kwargs or {}
    if options and isinstance(backbone, nn.Module):
        raise ValueError(
            f"{sorted(options)} say how to load a backbone, but `backbone` is a model that is loaded already. Load it "
            "with these options, or pass its name."
        )
    if not options.pop("use_safetensors", True):
        raise ValueError("`use_safetensors` must be True: pickled weights can run code. Leave it out.")
    return options


def _is_ours(config_class: type[PeftConfig]) -> bool:
    # Only these remember their backbone themselves, and are checked where they are loaded.
    return hasattr(config_class, "attach_to")


def _read(name: str | os.PathLike, place: dict[str, Any]) -> tuple[AdapterFiles, type[PeftConfig]]:
    """Find and check the files of an adapter."""
    files = find_adapter(name, **place)
    if files.config is None:
        where = f"{name}/{place['subfolder']}" if "subfolder" in place else f"{name}"
        raise ValueError(
            f"{where} has no {CONFIG_NAME}, so it is not an adapter. Pass the folder or repository of an adapter, and "
            "its `subfolder` if it holds several."
        )
    if files.weights is None:
        raise ValueError(f"{files.config.parent} has no {WEIGHTS_NAME}. Save or download the adapter again.")
    peft_type = read_json(files.config).get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ValueError(
            f"{files.config}: `peft_type` is {peft_type!r}, which neither peft nor point_peft_hf knows. If it is "
            "a type of your own, import the module that registers it first; else update both, or download the "
            "adapter again."
        )
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[peft_type]
    if not _is_ours(config_class):
        files.sidecar = find_file(
            name, BACKBONE_NAME, **(place | ({"revision": files.commit} if files.commit else {}))
        )
        # Those of ours are checked where they are loaded.
        check_unchanged(check_files(files))
        if files.problem is not None:
            raise ValueError(files.problem)
    else:
        files.fields = read_json(files.config)
    return files, config_class


def _expected_backbone(files: AdapterFiles) -> dict[str, Any]:
    """What an adapter remembers of its backbone."""
    source = files.fields if files.sidecar is None else read_json(files.sidecar)
    expected = source.get("backbone") or {}
    if not isinstance(expected, dict):
        raise ValueError(f"{files.sidecar or files.config}: `backbone` must be an object, got {expected!r}.")
    return expected


def _load_backbone(
    files: AdapterFiles,
    expected: dict[str, Any],
    name: str | os.PathLike | None,
    import_allowlist: list[str],
    kwargs: dict[str, Any],
) -> nn.Module:
    if name is None:
        name, revision = files.fields.get("base_model_name_or_path"), files.fields.get("revision")
        if not name or not isinstance(name, str):
            raise ValueError(
                f"{files.config}: does not say which backbone the adapter was made for (`base_model_name_or_path` is "
                f"{name!r}). Pass it: `backbone=`."
            )
        revision = revision or expected.get("revision")
        if revision is not None and not os.path.isdir(backbone_folder(name)):
            kwargs.setdefault("revision", revision)
    fields = {field: expected[field] for field in _OVERRIDES if expected.get(field) is not None}
    labels = expected.get("id2label")
    if labels is not None:
        if not isinstance(labels, dict) or not all(str(index).isdecimal() for index in labels):
            raise ValueError(f"{files.config}: `id2label` of the backbone must map numbers to names, got {labels!r}.")
        fields["num_labels"] = len(labels)
        fields["id2label"] = {int(index): str(label) for index, label in labels.items()}
        fields["label2id"] = {str(label): int(index) for index, label in labels.items()}
    if "config" not in kwargs:  # there they are fields of it
        kwargs = fields | kwargs
    model_class = _backbone_class(files, import_allowlist)
    # A head for other classes gives way to that of the adapter; all else is compared by the fingerprint.
    loaded = open_backbone(model_class, str(name), ignore_mismatched_sizes=True, use_safetensors=True, **kwargs)
    loaded.name_or_path = loaded.config.name_or_path = str(name)
    return loaded


def _backbone_class(files: AdapterFiles, import_allowlist: list[str]) -> type[PreTrainedModel]:
    """The class of the backbone, imported only from a package that is allowed, and only if it is one of a model."""
    mapping = files.fields.get("auto_mapping")
    if mapping is None:
        brought = files.fields.get("modules_to_save") or ()
        head = next((name for name in HEADS if name in brought), "classifier")
        return getattr(models, HEADS[head])
    names = [mapping.get(key) if isinstance(mapping, dict) else None for key in ("parent_library", "base_model_class")]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{files.config}: `auto_mapping` must name parent_library and base_model_class, got {mapping!r}. Download "
            "the adapter again."
        )
    library, class_name = names
    if not check_import_allowlist(import_allowlist, library):
        raise ValueError(
            f"{files.config}: the backbone's class {class_name!r} is in {library!r}, which is not imported, as only "
            f"{import_allowlist} may be. If you trust that package, pass `import_allowlist=[{library!r}]`; or load "
            "the backbone yourself and pass it: `backbone=`."
        )
    try:
        model_class = getattr(importlib.import_module(library), class_name, None)
    except ImportError as error:
        raise ValueError(
            f"{files.config}: the backbone's package {library!r} cannot be imported ({error}). Install it, or load "
            "the backbone yourself and pass it: `backbone=`."
        ) from error
    if not inspect.isclass(model_class) or not issubclass(model_class, PreTrainedModel):
        raise ValueError(
            f"{files.config}: {class_name!r} in {library!r} is not a model of transformers. Load the backbone "
            "yourself, and pass it: `backbone=`."
        )
    return model_class
