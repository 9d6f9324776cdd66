"""Errors of the data package, checks that it shares, and the import of its optional libraries."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import numpy as np

from ..extras import install_command


class PointCloudError(ValueError):
    """A file, a folder or an array that cannot be used as point clouds; the message names it and how to fix it."""


def import_optional(module: str, purpose: str) -> ModuleType:
    """Import a library of the `io` extra; without it the error says that `purpose` needs it, and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{purpose} needs {module}: {install_command('io')}") from error


def shorten(text: object, length: int = 60) -> str:
    """Quote a value for a message, cut to `length` characters."""
    quoted = repr(text)
    return quoted if len(quoted) <= length else quoted[: length - 3] + "..."


def as_integers(values: Any, name: str, length: str) -> np.ndarray:
    """Give integers of one axis as int64; the error says what they are and what their number is."""
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise PointCloudError(f"{name} must be integers of shape ({length},), got {values.dtype} of {values.shape}")
    return values.astype(np.int64)
