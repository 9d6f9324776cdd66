"""Models whose weights are spread over processes (FSDP), as whole ones to save and load."""

from __future__ import annotations

import copy

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict


class WholeModel:
    """The whole of a model, wherever its weights are: what is saved to, and loaded from, one folder.

    Without FSDP this is the model itself. With it, this is a copy on the CPU, made before the model is spread.

    Args:
        model: The model, before Accelerate prepares it.
        accelerator: The accelerator.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator):
        self.accelerator = accelerator
        self.copy = copy.deepcopy(model).cpu() if accelerator.distributed_type == DistributedType.FSDP else None

    def gather(self, model: nn.Module) -> nn.Module:
        """Give the whole of a prepared model; to be called on all processes, of use on the main one."""
        if self.copy is None:
            return self.accelerator.unwrap_model(model)
        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self.accelerator.is_main_process:
            self.copy.load_state_dict(weights)
        return self.copy

    def scatter(self, whole: nn.Module, model: nn.Module) -> None:
        """Put the weights of what `gather` gave, changed on all processes, back into a prepared model."""
        if self.copy is not None:
            set_model_state_dict(model, whole.state_dict(), options=StateDictOptions(full_state_dict=True))
