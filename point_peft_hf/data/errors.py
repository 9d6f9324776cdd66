"""Errors of the data package, and the import of its optional libraries."""

from __future__ import annotations

import importlib
from types import ModuleType


class PointCloudError(ValueError):
    """A file, a folder or an array that cannot be used as point clouds; the message names it and how to fix it."""


def import_optional(module: str, purpose: str) -> ModuleType:
    """Import a library of the `io` extra; without it the error says that `purpose` needs it, and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{purpose} needs {module}: pip install "point-peft-hf[io]"') from error


def shorten(text: object, length: int = 60) -> str:
    """Quote a value for a message, cut to `length` characters."""
    quoted = repr(text)
    return quoted if len(quoted) <= length else quoted[: length - 3] + "..."
