"""What the models do about adapters themselves: transformers' own methods, where they fall short.

What goes by way of PEFT is checked where a configuration is loaded; transformers goes another way, and only reports
what is missing.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from ..attaching import RandomPartsGuard, activate, active_adapters, all_or_nothing, deactivate
from ..io.files import AdapterFiles, check_files, check_unchanged, find_adapter, write_checksums
from ..io.weights import load_weights
from .layers.transformer import TokenLayer

_HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class AdapterModelMixin(RandomPartsGuard):
    """The methods of a model that deal with adapters; comes before `PreTrainedModel` among the bases."""

    # The adapter that transformers is loading, and its files.
    _loads_adapter: tuple[str, AdapterFiles] | None = None

    @staticmethod
    def _finalize_model_loading(model, load_config, loading_info):
        loading_info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        model.note_loading(loading_info.missing_and_mismatched())
        return loading_info

    def add_adapter(self, adapter_config, adapter_name: str | None = None) -> None:
        """Attach an adapter, as in transformers, or leave the model as it is.

        Args:
            adapter_config: Its configuration.
            adapter_name: Its name; default: "default".
        """
        with all_or_nothing(self, adapter_config):
            super().add_adapter(adapter_config, adapter_name)

    def load_adapter(self, *args, **kwargs) -> Any:
        """Load an adapter, as in transformers, but only if its files are sound and hold all that it needs.

        Args:
            *args: As in transformers.
            **kwargs: As in transformers; also `revision`, `subfolder` and the like, which belong into
                `adapter_kwargs` there.

        Returns:
            As in transformers.

        Raises:
            ValueError: If not, with the names of key and file; nothing is attached then.
        """
        signature = inspect.signature(super().load_adapter)
        moved = {key: kwargs.pop(key) for key in _HUB_KEYS if key in kwargs and key not in signature.parameters}
        if moved:
            kwargs["adapter_kwargs"] = {**moved, **(kwargs.get("adapter_kwargs") or {})}
        given = signature.bind(*args, **kwargs).arguments
        name = given.get("peft_model_id")
        with all_or_nothing(self):
            if name is not None and given.get("adapter_state_dict") is None:
                files = check_files(find_adapter(name, **_hub_arguments(given)))
                if files.config is not None:
                    check_unchanged(files)
                if files.weights is not None:
                    self._loads_adapter = given.get("adapter_name") or "default", files
            loaded = super().load_adapter(*args, **kwargs)
        self._loads_adapter = None
        return loaded

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, expected_keys=None):
        if model._loads_adapter is not None:
            # transformers renames keys by rules that do not hold for all layers, and only reports what is missing.
            load_weights(model, *model._loads_adapter)
            state_dict, checkpoint_files, expected_keys = {}, [], []
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, expected_keys)

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Save the model, or the active adapter if it carries one, as in transformers.

        Args:
            save_directory: The folder.
            *args: As in transformers.
            **kwargs: As in transformers.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        self._refresh_checksums(save_directory)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        self._refresh_checksums(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _refresh_checksums(self, folder) -> None:
        """Bring an adapter's checksums up to date: transformers writes the weights after the configuration."""
        config = self.peft_config.get(self.active_adapters()[0]) if self._hf_peft_config_loaded else None
        if hasattr(config, "checksums"):
            write_checksums(folder)

    def enable_input_require_grads(self) -> None:
        """Let the embedding's output require a gradient, as in transformers, unless checkpointing is not reentrant.

        PEFT and transformers call this for gradient checkpointing. The reentrant kind loses the gradients of an
        adapter without it. The other kind does not: it would only run the backward pass of blocks in which nothing is
        trained.
        """
        hook = self.get_input_embeddings().register_forward_hook(self._require_grad_of_embedding)
        # What `disable_input_require_grads` removes.
        self._require_grads_hooks, self._require_grads_hook = [hook], hook

    def _require_grad_of_embedding(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        kinds = {layer.checkpointing_is_reentrant for layer in self.modules() if isinstance(layer, TokenLayer)}
        if kinds - {None} != {False}:
            output.requires_grad_(True)

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """Choose the active adapters, as transformers' models do; here also where only some of them bring a head.

        Args:
            adapter_name: Name of an adapter, or several names.

        Raises:
            ValueError: If there is no such adapter, or if two of them bring the same module.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if set(names) - set(getattr(self, "peft_config", {})):
            super().set_adapter(names)  # It says what is wrong.
        activate(self, names)

    def delete_adapter(self, adapter_names: list[str] | str) -> None:
        """Delete adapters, as in transformers.

        If they were all that was active, the first of the others becomes active, with its head.

        Args:
            adapter_names: Name of an adapter, or several names.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if not set(names) - set(getattr(self, "peft_config", {})):
            deactivate(self, names, active_adapters(self))
        super().delete_adapter(names)

    def enable_adapters(self) -> None:
        """Enable the adapters again, with the heads they bring, which transformers leaves disabled."""
        super().enable_adapters()
        for module in self.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                module.enable_adapters(enabled=True)


def _hub_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Where on the Hub an adapter is, out of the several ways to pass it to transformers."""
    sources = (
        getattr(given.get("load_config"), "download_kwargs", None) or {},
        given.get("kwargs", {}).get("download_kwargs") or {},
        {key: given[key] for key in _HUB_KEYS if key in given},
        given.get("adapter_kwargs") or {},
    )
    merged = {key: value for source in sources for key, value in source.items() if key in _HUB_KEYS}
    return {key: value for key, value in merged.items() if value is not None}
