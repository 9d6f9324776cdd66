"""A folder that one process at a time writes to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# Workers that load data outlive a process that was killed by some seconds, and with them its lock.
WAIT_SECONDS = 10.0


@contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """Keep other processes from writing to a folder.

    The lock is an empty hidden file next to the folder, which can be replaced as a whole. It ends with the process,
    however that ends. Within one process a folder may be locked several times. Where the file system knows no locks,
    none is taken.

    Args:
        folder: The folder; it need not exist.

    Raises:
        ValueError: If another process has it for longer than `WAIT_SECONDS`.
        OSError: If the file cannot be written.
    """
    target = Path(folder).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"), is_singleton=True)
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except NotImplementedError:
        pass
    except Timeout as error:
        raise ValueError(
            f"Another process is writing to {folder}. Wait until it ends, or pass another --output_dir."
        ) from error
    try:
        yield
    finally:
        lock.release()
