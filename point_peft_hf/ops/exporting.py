"""Which operators a program may have that is exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_FOR_ONNX = ContextVar("for_onnx", default=False)


@contextmanager
def exporting_for_onnx() -> Iterator[None]:
    """Inside, `torch.export` gives programs that can become ONNX files, with operators as ONNX defines them."""
    token = _FOR_ONNX.set(True)
    try:
        yield
    finally:
        _FOR_ONNX.reset(token)


def is_exporting_for_onnx() -> bool:
    """Whether a program is being exported for ONNX."""
    return torch.compiler.is_exporting() and _FOR_ONNX.get()
