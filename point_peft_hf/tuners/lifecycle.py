"""What happens to an adapter of ours between attaching and deleting, where PEFT's own way falls short."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from peft.tuners.tuners_utils import BaseTuner, _filter_state_dict_by_key_prefixes, _get_tuner_state_dict_key_prefixes
from torch import nn

from ..attaching import check_active_together, deactivate
from .config import PointTunerConfig


class AdapterLifecycle(BaseTuner):
    """A tuner that leaves no trace of what failed, and keeps heads and layers of the active adapters together."""

    def __init__(self, model: nn.Module, peft_config, adapter_name: str, *args, **kwargs):
        # PEFT adds the new configuration to those of the model before it looks at it.
        shared = getattr(model, "peft_config", None)
        before = dict(shared or {})
        try:
            super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        except BaseException:
            if shared is not None:
                shared.clear()
                shared.update(before)
            raise

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Choose the active adapters; see PEFT's method of this name.

        Raises:
            ValueError: If two of them bring the same module.
        """
        check_active_together(self.model, adapter_name)
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; see PEFT's method of this name.

        If it was the only active one, the first of the others becomes active, with its head.
        """
        remaining = None
        if adapter_name in self.peft_config:
            remaining = deactivate(self.model, [adapter_name], self.active_adapters)
        super().delete_adapter(adapter_name)
        self.active_adapter = remaining

    # -- Files --------------------------------------------------------------------------------------------------------

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PointTunerConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: Iterable[str],
    ) -> dict[str, torch.Tensor]:
        prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name=adapter_name)
        tensors = _filter_state_dict_by_key_prefixes(state_dict, prefixes)
        if unwanted_adapter_names:
            # PEFT has left out all keys with the name of another adapter in them, which may be that of a module.
            tensors = _filter_state_dict_by_key_prefixes(model.state_dict(), prefixes) | tensors
        return tensors
