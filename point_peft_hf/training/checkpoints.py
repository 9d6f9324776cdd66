"""Checkpoints of a Trainer that hold what was trained, and a manifest that says whether they are whole."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from ..io.files import file_checksum, read_json, write_json
from ..io.folders import flush_files, link_or_copy

MANIFEST_NAME = "manifest.json"
# The best model so far, in the folder of a later checkpoint.
BEST_NAME = "best"
_MODEL_FILES = ("*.safetensors", "*config.json")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def save_model(model: nn.Module, folder: str | Path, state_dict: dict[str, Any] | None = None) -> None:
    """Save what was trained: the adapter of a `PeftModel` (with all it needs), else the whole model.

    Args:
        model: The model.
        folder: Where to.
        state_dict: Its weights, if they are not in the model itself (sharded over processes).
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


def checkpoint_paths(folder: Path) -> list[Path]:
    """The checkpoints in the folder of a run, the oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(_CHECKPOINT.fullmatch(path.name)[1]))


def seal_checkpoint(checkpoint: Path, content: Mapping[str, Any]) -> None:
    """Flush a checkpoint to the disk and write its manifest; without one it counts as half written."""
    files = sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name != MANIFEST_NAME)
    manifest = {
        file.relative_to(checkpoint).as_posix(): {"bytes": file.stat().st_size, "sha256": file_checksum(file)}
        for file in files
    }
    flush_files(checkpoint)
    write_json(checkpoint / MANIFEST_NAME, {**content, "files": manifest})


def keep_best(checkpoint: Path, best: Path) -> None:
    """Give a checkpoint the model of the best one, so that it can be resumed without it."""
    if best == checkpoint or not best.is_dir():
        return
    (checkpoint / BEST_NAME).mkdir(exist_ok=True)
    for file in (file for pattern in _MODEL_FILES for file in best.glob(pattern)):
        target = checkpoint / BEST_NAME / file.name
        target.unlink(missing_ok=True)
        link_or_copy(file, target)


def restore_best(checkpoint: Path, folder: Path, step: int) -> None:
    """Put the best model that a checkpoint holds into the folder of its run, if it is not there."""
    target, source = folder / f"checkpoint-{step}", checkpoint / BEST_NAME
    if source.is_dir() and not target.is_dir():
        shutil.copytree(source, target)
        seal_checkpoint(target, {})


def delete_unfinished(folder: Path) -> None:
    """Delete the checkpoints that a killed process left half written or half deleted."""
    for checkpoint in checkpoint_paths(folder):
        if not (checkpoint / MANIFEST_NAME).is_file():
            shutil.rmtree(checkpoint)


def find_problem(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint; `None` if it is whole."""
    try:
        files = read_json(checkpoint / MANIFEST_NAME)["files"]
        for name, expected in files.items():
            size = (checkpoint / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']}"
            if file_checksum(checkpoint / name) != expected["sha256"]:
                return f"{name} has changed since it was written"
    except OSError as error:
        return f"{Path(error.filename or MANIFEST_NAME).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_NAME} cannot be read"
    return None


def find_checkpoint(folder: Path, wanted: str, warn: Callable[[str], None]) -> Path | None:
    """Find the checkpoint to resume from.

    Args:
        folder: The folder of the run.
        wanted: "latest" (or "True", as transformers has it) for the newest one that is whole, or a folder.
        warn: Called with a line for each newer one that is damaged.

    Returns:
        The checkpoint; `None` if the newest one is wanted and there is none at all.
    """
    if wanted.lower() not in ("latest", "true"):
        path = Path(wanted)
        if not (path / MANIFEST_NAME).is_file():
            raise ValueError(
                f"{path} holds no checkpoint to resume from. Pass the folder of one (.../checkpoint-...), 'latest', "
                "or leave --resume_from_checkpoint out to start anew."
            )
        if (problem := find_problem(path)) is not None:
            raise ValueError(f"The checkpoint {path} is damaged: {problem}. Pass another one, or 'latest'.")
        return path
    paths = checkpoint_paths(folder)
    for path in reversed(paths):
        if (problem := find_problem(path)) is None:
            return path
        warn(f"warning: the checkpoint {path} is damaged ({problem}); falling back to the one before")
    if paths:
        raise ValueError(
            f"All {len(paths)} checkpoints in {folder} are damaged. Leave --resume_from_checkpoint out and pass "
            "--overwrite_output_dir to start anew."
        )
    return None


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint: "identity", which its weights depend on, "progress" of the epoch, and "files"."""
    return read_json(checkpoint / MANIFEST_NAME)


def what_is_safe(folder: Path) -> str:
    """Say which checkpoint the run in a folder can go on from, and how."""
    paths = [path for path in checkpoint_paths(folder) if (path / MANIFEST_NAME).is_file()]
    if not paths:
        return "No checkpoint was saved before."
    return f"{paths[-1]} is safe: continue from it with --resume_from_checkpoint latest."


def save_failure(
    folder: Path, model: nn.Module, batch: Mapping[str, torch.Tensor] | None, facts: Mapping[str, Any], process: int
) -> None:
    """Save what is needed to find out why a step failed: the model before it, and its batch."""
    folder.mkdir(parents=True, exist_ok=True)
    if process == 0:
        save_model(model, folder)
    if batch is not None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in batch.items()}
        save_file(tensors, folder / f"batch_{process}.safetensors")
        write_json(folder / f"failure_{process}.json", facts)
