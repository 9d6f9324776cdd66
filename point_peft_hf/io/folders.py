"""Writing a folder so that it is at any time either as it was or complete."""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .files import BACKBONE_NAME

# A folder that is being written, next to the one whose place it takes.
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}")


def final_name(folder: str | os.PathLike) -> str:
    """Name of a folder; of one that [`replaced_folder`] is writing, that of the folder whose place it takes."""
    name = Path(folder).resolve().name
    match = _TEMPORARY.fullmatch(name)
    return name if match is None else match[1]


@contextmanager
def replaced_folder(folder: str | os.PathLike, dropped: Sequence[str] = (BACKBONE_NAME,)) -> Iterator[Path]:
    """Write a folder as a whole or not at all.

    Yields an empty folder next to it, which takes its place when the block ends without an exception. What is in the
    old folder and not written again is taken over, except for the files `dropped`, without being copied where the file
    system has hard links. A process that is killed between the two renamings at the end leaves the old folder next to
    the new one, under the name ".<folder>.replaced"; the next call puts it back.
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
        flush_files(new)
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

    The folder is put back if it was away, and its temporary neighbours are deleted.
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


def flush_files(folder: Path) -> None:
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
            shutil.copytree(entry, target, copy_function=link_or_copy, symlinks=True)
        else:
            link_or_copy(entry, target)


def link_or_copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Give a file a second name, or where the file system cannot do that, a copy."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
