"""Checkpoints of a training that hold the adapter, not the backbone, through Accelerate's hooks."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from ..io.files import file_checksum, read_json, write_json

STATE_NAME = "training_state.json"
MANIFEST_NAME = "manifest.json"
BEST_NAME = "best"
_CHECKPOINT = re.compile(r"step-(\d{8,})")


def save_model(model: nn.Module, folder: str | Path, state_dict: dict[str, Any] | None = None) -> None:
    """Save what was trained: the adapter of a `PeftModel` (with all it needs), else the whole model.

    Args:
        model: The model.
        folder: Where to.
        state_dict: Its weights, where they are not in the model itself (sharded over processes).
    """
    if isinstance(model, PeftModel):
        # There are no word embeddings to look for; without this PEFT would ask the Hub about the backbone.
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=state_dict)
    else:
        model.save_pretrained(folder, state_dict=state_dict)


def load_model(model: nn.Module, folder: str | Path) -> None:
    """Load into a model what `save_model` wrote for one like it."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"), model.active_adapter)
    else:
        model.load_state_dict(load_file(Path(folder) / "model.safetensors"))


def register_adapter_checkpoints(accelerator: Accelerator) -> None:
    """Make `accelerator.save_state` and `load_state` save and load models with `save_model` and `load_model`.

    Under FSDP and DeepSpeed, Accelerate saves and loads the shards of models itself.
    """

    def save_hook(models: list[nn.Module], weights: list[Any], output_dir: str) -> None:
        if accelerator.is_main_process and weights:
            for index, model in enumerate(models):
                save_model(accelerator.unwrap_model(model), Path(output_dir) / f"model_{index}")
        # Emptying the list tells Accelerate that the models are taken care of.
        weights.clear()

    def load_hook(models: list[nn.Module], input_dir: str) -> None:
        for index in reversed(range(len(models))):
            load_model(accelerator.unwrap_model(models.pop()), Path(input_dir) / f"model_{index}")

    accelerator.register_save_state_pre_hook(save_hook)
    accelerator.register_load_state_pre_hook(load_hook)


class Checkpoints:
    """The checkpoints of a run: folders "step-00000120", each of them either whole or not there.

    A checkpoint is written under a temporary name, flushed to the disk, and renamed. It holds what
    `accelerator.save_state` saves, the best model so far, "training_state.json", and a manifest with the size and the
    sha256 of each file.

    Args:
        folder: Where they are.
        keep: Number of checkpoints that are kept.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder = Path(folder)
        self.keep = keep

    def paths(self) -> list[Path]:
        """The checkpoints, the oldest first."""
        found = [path for path in self.folder.glob("step-*") if _CHECKPOINT.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(_CHECKPOINT.fullmatch(path.name)[1]))

    def clean(self) -> None:
        """Delete what a killed process left half written or half deleted, and put back what it was replacing."""
        for old in self.folder.glob(".step-*.old"):
            target = self.folder / old.name.removeprefix(".").removesuffix(".old")
            if not target.exists():
                old.rename(target)
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover)

    def save(self, accelerator: Accelerator, step: int, state: dict[str, Any], best: Iterable[Path] = ()) -> Path:
        """Save the state of a training; to be called on all processes.

        Args:
            accelerator: The accelerator, with `register_adapter_checkpoints` called.
            step: Number of optimizer steps taken.
            state: What else must be known to continue; anything that JSON can hold.
            best: Files of the best model so far.

        Returns:
            The checkpoint.
        """
        target = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{target.name}.tmp"
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / BEST_NAME).mkdir(parents=True)
        accelerator.wait_for_everyone()
        try:
            accelerator.save_state(str(temporary), safe_serialization=True)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                for file in best:
                    link_or_copy(file, temporary / BEST_NAME / file.name)
                write_json(temporary / STATE_NAME, state)
                write_json(temporary / MANIFEST_NAME, {"files": _manifest(temporary)})
                _flush(temporary)
                self._put(temporary, target)
        except BaseException:
            # On a full disk, nothing must stay that cannot be used.
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if accelerator.is_main_process:
            for path in self.paths()[: -self.keep]:
                self._delete(path)
        accelerator.wait_for_everyone()
        return target

    def _put(self, temporary: Path, target: Path) -> None:
        old = self.folder / f".{target.name}.old"
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        _flush_folder(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def _delete(self, path: Path) -> None:
        # Under its own name a half deleted checkpoint would look like a damaged one.
        hidden = self.folder / f".{path.name}.tmp"
        path.rename(hidden)
        shutil.rmtree(hidden)

    def latest(self, warn: Callable[[str], None]) -> Path | None:
        """Find the newest checkpoint that is whole.

        Args:
            warn: Called with a line for each newer one that is not.

        Returns:
            The checkpoint; `None` if there is none at all.

        Raises:
            ValueError: If there are checkpoints, but none is whole.
        """
        paths = self.paths()
        for path in reversed(paths):
            problem = find_problem(path)
            if problem is None:
                return path
            warn(f"warning: the checkpoint {path} is not whole ({problem}); the one before is used")
        if paths:
            raise ValueError(
                f"None of the {len(paths)} checkpoints in {self.folder} is whole. Leave --resume_from_checkpoint out "
                "and pass --overwrite_output_dir to start anew."
            )
        return None


def find_problem(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint; `None` if it is whole."""
    try:
        files = read_json(checkpoint / MANIFEST_NAME)["files"]
        for name, expected in files.items():
            size = (checkpoint / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']}"
            if file_checksum(checkpoint / name) != expected["sha256"]:
                return f"{name} has other contents than were written"
    except OSError as error:
        return f"{Path(error.filename or MANIFEST_NAME).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_NAME} cannot be read"
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the `state` that a checkpoint was saved with.

    Raises:
        ValueError: If the folder holds no whole checkpoint.
    """
    if not (checkpoint / MANIFEST_NAME).is_file():
        raise ValueError(
            f"{checkpoint} holds no checkpoint to resume from. Pass the folder of one (.../checkpoints/step-...), or "
            "leave --resume_from_checkpoint out to start anew."
        )
    problem = find_problem(checkpoint)
    if problem is not None:
        raise ValueError(
            f"The checkpoint {checkpoint} is not whole: {problem}. Pass another one, or 'latest' for the newest that "
            "is."
        )
    return read_json(checkpoint / STATE_NAME)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or where the file system cannot do that, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _manifest(folder: Path) -> dict[str, Any]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": file_checksum(file)}
        for file in files
    }


def _flush(folder: Path) -> None:
    """Wait until a folder is on the disk, so that a power failure cannot leave its name with other contents."""
    for file in folder.rglob("*"):
        if file.is_file():
            # Windows flushes only what may be written.
            with open(file, "rb" if os.name == "posix" else "r+b") as opened:
                os.fsync(opened.fileno())
        else:
            _flush_folder(file)
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
