"""Saving an adapter so that the folder is at any time either as it was or complete."""

from __future__ import annotations

import filecmp
import glob
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import FeatureExtractionMixin

from ..adapter_files import BACKBONE_NAME, CONFIG_NAME, WEIGHTS_NAME, checksums, read_header, read_json, write_json
from ..tuners.config import PointTunerConfig, describe_backbone
from .card import CARD_NAME, is_generated, write_model_card
from .facts import RECORD_NAME


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
    name = adapter_name or model.active_adapter
    if not isinstance(model, PeftModel) or name not in model.peft_config:
        known = list(getattr(model, "peft_config", {}))
        raise ValueError(
            f"The model has no adapter {name!r}; it has {known}. Pass a PeftModel and one of its adapters."
        )
    with replaced_folder(folder, dropped=(BACKBONE_NAME, RECORD_NAME)) as new:
        _write_adapter(model, name, new)
        before = Path(folder)
        if record is None and (before / RECORD_NAME).is_file() and _same(before / WEIGHTS_NAME, new / WEIGHTS_NAME):
            # What was recorded of other weights would be told of these.
            shutil.copyfile(before / RECORD_NAME, new / RECORD_NAME)
        if processor is not None:
            processor.save_pretrained(new)
        if record is not None:
            write_json(new / RECORD_NAME, record if isinstance(record, Mapping) else {"runs": list(record)})
        if card and is_generated(Path(folder) / CARD_NAME):
            write_model_card(new)
        read_header(new / WEIGHTS_NAME)
        read_json(new / CONFIG_NAME)
    return Path(folder)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and filecmp.cmp(one, other, shallow=False)


def _write_adapter(model: PeftModel, name: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        # Without this, PEFT would ask the Hub whether the backbone has word embeddings.
        model.save_pretrained(inner, selected_adapters=[name], save_embedding_layers=False)
        # PEFT gives all adapters but "default" a folder of their own; and its card is a form to be filled in.
        source = Path(inner) if name == "default" else Path(inner) / name
        for file in (CONFIG_NAME, WEIGHTS_NAME):
            os.replace(source / file, folder / file)
    config = model.peft_config[name]
    if not isinstance(config, PointTunerConfig):
        description = describe_backbone(model.get_base_model(), getattr(config, "modules_to_save", None) or ())
        sums = checksums(folder, read_json(folder / CONFIG_NAME))
        write_json(folder / BACKBONE_NAME, {"backbone": description, "checksums": sums})


@contextmanager
def replaced_folder(folder: str | os.PathLike, dropped: Sequence[str] = (BACKBONE_NAME,)) -> Iterator[Path]:
    """Write a folder as a whole or not at all.

    What lies in the folder already and is not written again is taken over, without being copied where the file system
    has hard links. A process that is killed between the two renamings at the end leaves the old folder beside the new
    one, under the name ".<folder>.replaced"; the next call puts it back.

    Args:
        folder: The folder; it need not exist.
        dropped: Names of files that are not taken over.

    Yields:
        An empty folder beside it, which takes its place when the block ends without an exception.

    Raises:
        ValueError: If there is a file of that name, or a folder that cannot be renamed.
    """
    target = Path(folder).resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{folder} is a file. Pass a folder to save to.")
    if Path.cwd().is_relative_to(target) or os.path.ismount(target):
        raise ValueError(
            f"{folder} is the working directory, holds it, or is a mount point, and so cannot be replaced as a whole. "
            "Pass a folder inside of it."
        )
    old = _replaced(target)
    _put_back(target)
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    new.mkdir(parents=True)
    try:
        yield new
        _flush(new)
        if target.exists():
            _take_over(target, new, dropped)
            if old.exists():
                shutil.rmtree(old)
            target.rename(old)
        new.rename(target)
    except BaseException:
        _put_back(target)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: str | os.PathLike) -> None:
    """Clean up after processes that were killed in `replaced_folder`; no other may be in it at this time.

    Args:
        folder: The folder that they were replacing. It is put back if it was away, and what lies beside it is deleted.
    """
    target = Path(folder).resolve()
    _put_back(target)
    shutil.rmtree(_replaced(target), ignore_errors=True)
    for unfinished in target.parent.glob(f".{glob.escape(target.name)}.*"):
        if re.fullmatch(r"[0-9a-f]{8}", unfinished.name.rpartition(".")[2]):
            shutil.rmtree(unfinished)


def _replaced(target: Path) -> Path:
    """Where a folder is while another takes its place: under a name that no person gives to one to be kept."""
    return target.with_name(f".{target.name}.replaced")


def _put_back(target: Path) -> None:
    old = _replaced(target)
    if old.is_dir() and not target.exists():
        old.rename(target)


def _flush(folder: Path) -> None:
    """Wait until the files are on the disk, so that a power failure cannot leave the new names with old contents."""
    for file in folder.rglob("*"):
        if file.is_file():
            # Windows flushes only what may be written.
            with open(file, "rb" if os.name == "posix" else "r+b") as opened:
                os.fsync(opened.fileno())


def _take_over(old: Path, new: Path, dropped: Sequence[str]) -> None:
    """Put everything that a folder has and another has not into the other as well."""
    for entry in old.iterdir():
        target = new / entry.name
        if target.exists() or entry.name in dropped:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target, copy_function=_link_or_copy, symlinks=True)
        else:
            _link_or_copy(entry, target)


def _link_or_copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
