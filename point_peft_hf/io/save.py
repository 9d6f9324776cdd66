"""Saving an adapter so that the folder is at any time either as it was or complete."""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import FeatureExtractionMixin

from .backbone import describe_backbone
from .card import is_generated, write_model_card
from .files import (
    BACKBONE_NAME,
    CARD_NAME,
    CONFIG_NAME,
    RECORD_NAME,
    WEIGHTS_NAME,
    checksums,
    read_header,
    read_json,
    write_json,
)
from .folders import replaced_folder


def save_adapter(
    model: PeftModel,
    folder: str | os.PathLike,
    *,
    adapter_name: str | None = None,
    processor: FeatureExtractionMixin | None = None,
    record: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    card: bool = True,
) -> Path:
    """Save an adapter with all that is needed to predict with it, and its model card.

    Everything is written to a temporary folder, read back, and only then put in the place of what was there; files in
    the folder that do not belong to the adapter stay, and so do the preprocessing if none is passed, and the record
    if the weights are the same as before. If anything fails, the folder is as it was.

    Args:
        model: The model.
        folder: Where the adapter goes; PEFT and transformers can load it from there.
        adapter_name: Which adapter; default: the active one.
        processor: What prepared the clouds, saved to `preprocessor_config.json`.
        record: What training recorded, saved to `run.json` and told in the card; several for several seeds.
        card: Whether to write a model card, `README.md`. One that was written by hand is left as it is, and so
            is one of ours from which the line that says so was deleted.

    Returns:
        The folder.

    Raises:
        ValueError: If there is no such adapter, or the folder cannot be replaced.
    """
    name = adapter_name or getattr(model, "active_adapter", None)
    if not isinstance(model, PeftModel) or name not in model.peft_config:
        known = list(getattr(model, "peft_config", {}))
        raise ValueError(
            f"A {type(model).__name__} with the adapters {known} has no adapter {name!r} to save. Pass a PeftModel "
            "and the name of one of its adapters; adapters that `add_adapters` attached are saved by `save_adapters`."
        )
    with replaced_folder(folder, dropped=(BACKBONE_NAME, RECORD_NAME)) as new:
        _write_adapter(model, name, new)
        old = {name: Path(folder) / name for name in (RECORD_NAME, WEIGHTS_NAME)}
        # A record of other weights does not hold for these.
        if record is None and all(file.is_file() for file in old.values()):
            if filecmp.cmp(old[WEIGHTS_NAME], new / WEIGHTS_NAME, shallow=False):
                shutil.copyfile(old[RECORD_NAME], new / RECORD_NAME)
        if processor is not None:
            processor.save_pretrained(new)
        if record is not None:
            write_json(new / RECORD_NAME, record if isinstance(record, Mapping) else {"runs": list(record)})
        if card and is_generated(Path(folder) / CARD_NAME):
            write_model_card(new)
        read_header(new / WEIGHTS_NAME)
        read_json(new / CONFIG_NAME)
    return Path(folder)


def _write_adapter(model: PeftModel, name: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        # Without this, PEFT would ask the Hub whether the backbone has word embeddings.
        model.save_pretrained(inner, selected_adapters=[name], save_embedding_layers=False)
        # PEFT gives all adapters but "default" a folder of their own; and its card is a form to be filled in.
        source = Path(inner) if name == "default" else Path(inner) / name
        for file in (CONFIG_NAME, WEIGHTS_NAME):
            os.replace(source / file, folder / file)
    config = model.peft_config[name]
    if not hasattr(config, "checksums"):
        description = describe_backbone(model.get_base_model(), getattr(config, "modules_to_save", None) or ())
        sums = checksums(folder, read_json(folder / CONFIG_NAME))
        write_json(folder / BACKBONE_NAME, {"backbone": description, "checksums": sums})
