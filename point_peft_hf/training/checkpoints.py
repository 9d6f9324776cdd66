"""Checkpoints of a training that hold the adapter, not the backbone, through Accelerate's hooks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

STATE_NAME = "training_state.json"


def save_model(model: nn.Module, folder: str | Path) -> None:
    """Save what was trained: the adapter of a `PeftModel` (with all it needs), else the whole model."""
    if isinstance(model, PeftModel):
        # There are no word embeddings to look for; without this PEFT would ask the Hub about the backbone.
        model.save_pretrained(folder, save_embedding_layers=False)
    else:
        model.save_pretrained(folder)


def load_model(model: nn.Module, folder: str | Path) -> None:
    """Load into a model what `save_model` wrote for one like it."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"), model.active_adapter)
    else:
        model.load_state_dict(load_file(Path(folder) / "model.safetensors"))


def register_adapter_checkpoints(accelerator: Accelerator) -> None:
    """Make `accelerator.save_state` and `load_state` save and load models with `save_model` and `load_model`."""

    def save_hook(models: list[nn.Module], weights: list[Any], output_dir: str) -> None:
        # Emptying the list tells Accelerate that the models are taken care of.
        weights.clear()
        if accelerator.is_main_process:
            for index, model in enumerate(models):
                save_model(accelerator.unwrap_model(model), Path(output_dir) / f"model_{index}")

    def load_hook(models: list[nn.Module], input_dir: str) -> None:
        for index in reversed(range(len(models))):
            load_model(accelerator.unwrap_model(models.pop()), Path(input_dir) / f"model_{index}")

    accelerator.register_save_state_pre_hook(save_hook)
    accelerator.register_load_state_pre_hook(load_hook)


def save_checkpoint(accelerator: Accelerator, folder: Path, state: dict[str, Any]) -> None:
    """Save the state of a training; the previous checkpoint in `folder` is only replaced by a complete one.

    Args:
        accelerator: The accelerator, with `register_adapter_checkpoints` called.
        folder: Where the checkpoint goes.
        state: What else must be known to continue; anything that JSON can hold.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    if accelerator.is_main_process and temporary.exists():
        shutil.rmtree(temporary)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (temporary / STATE_NAME).write_text(json.dumps(state))
        replace_folder(temporary, folder)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path) -> dict[str, Any]:
    """Load a checkpoint into what the accelerator has prepared, and return the `state` it was saved with.

    Raises:
        ValueError: If the folder holds no complete checkpoint.
    """
    if not (folder / STATE_NAME).is_file():
        raise ValueError(
            f"{folder} holds no checkpoint to resume from. Pass the folder of one, or leave "
            "--resume_from_checkpoint out to start anew."
        )
    accelerator.load_state(str(folder))
    return json.loads((folder / STATE_NAME).read_text())


def recover_folder(target: Path) -> None:
    """Put back a folder that a process was replacing when it was killed."""
    old = target.with_name(target.name + ".old")
    if old.exists() and not target.exists():
        old.rename(target)


def replace_folder(new: Path, target: Path) -> None:
    """Put a complete folder in the place of another.

    A process that is killed in between leaves the other under the name "<folder>.old": see `recover_folder`.
    """
    recover_folder(target)
    old = target.with_name(target.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        target.rename(old)
    new.rename(target)
    if old.exists():
        shutil.rmtree(old)
